"""Where the host may wait for the card, and why: everything else is a fault.

A wait costs what the card could have computed meanwhile. One in each step of training is felt; one
in each preview is not.
"""

from __future__ import annotations

from collections import Counter

IN_A_STEP = {
    "trainer/distill/distiller.py:shared_values": "losses and gradient norm, in one copy",
    "trainer/motion/sources.py:add": "predictions to replay, after the optimizer's step",
    "trainer/families/base.py:remember_texts": "a prompt's text, once a run",
    "trainer/adversarial/frames.py:_look": "maps of a clip that is looked at once a run",
    "trainer/families/base.py:awake": "a part that rests in main memory goes back there",
}
WITH_OFFLOADED_OPTIMIZER = {
    "trainer/distill/optimizers.py:step": "parameters and gradients, to be updated by the host",
    "trainer/distill/student.py:__init__": "the average is kept in main memory",
    "trainer/distill/student.py:load_state_dict": "the average is kept in main memory",
    "trainer/distill/student.py:update": "the average is kept in main memory",
}
WITHOUT_IMAGES = {
    "trainer/adversarial/frames.py:batch": "frames of the motion source, decoded when drawn",
}
READING_TEXT = {
    "trainer/families/base.py:_reading": "the network makes room for a large text encoder, once",
    "trainer/models/block_swap.py:moved": "what of its blocks is on the card does too",
    "trainer/families/text.py:encode": "UMT5 asks whether its mask is whole; texts are read once",
}
BESIDE_STEPS = {
    **IN_A_STEP,
    **READING_TEXT,
    "trainer/distill/student.py:roll_out": "the library is kept in main memory",
    "trainer/distill/sources.py:_videos": "encoded videos are kept in main memory",
    "trainer/adversarial/losses.py:norms": "a checkpoint has no norms before the first finite one",
    "trainer/adversarial/losses.py:state_dict": "checkpoint",
    "trainer/runs/checkpoints.py:_serialise": "checkpoint",
    "trainer/distill/originals.py:make": "the base model's clips beside previews are kept on disk",
    "trainer/evaluate/generate.py:_decoded": "clips are looked at and written by the host",
    "trainer/evaluate/closeness.py:_features": "distances of a preview's frames",
    "trainer/motion/sources.py:load_state_dict": "a resumed run keeps predictions in main memory",
    "trainer/models/sound.py:check_latents": "a clip that is not finite is an error",
    "trainer/lora/pairs.py:check_pair": "an export holds finite numbers only",
    "trainer/lora/export.py:cast_pairs": "export",
}
MEASURING = {
    "trainer/evaluate/networks.py:_in_batches": "features are compared by the host",
    "trainer/evaluate/published.py:similarity": "CLIPSIM is a number of the host",
    "trainer/mini/networks.py:hits": "what the judge read is compared by the host",
}


def places(waits: Counter[tuple[str, str]]) -> set[str]:
    return {place for place, _ in waits}

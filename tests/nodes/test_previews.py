"""While a clip is sampled all its frames are shown, one after another."""

from __future__ import annotations

import threading
import time
from importlib import import_module

import pytest
import torch
from patience import wait_until

FRAMES, SIDE = 8, 4


@pytest.fixture(scope="module")
def native(comfy):
    return lambda name: import_module(f"{comfy.__name__}.nodes.native.{name}")


@pytest.fixture
def previews_on(comfy, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)


@pytest.fixture
def sent(comfy):
    """What a node being executed shows to the browser: (value, total, image) as it arrives."""
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import (
        ProgressHandler,
        add_progress_handler,
        reset_progress_state,
    )
    from comfy_execution.utils import CurrentNodeContext

    seen = []

    class Recorder(ProgressHandler):
        def update_handler(self, node_id, value, max_value, state, prompt_id, image=None):
            seen.append((value, max_value, image, node_id))

    reset_progress_state("prompt", DynamicPrompt({"7": {"class_type": "KSampler", "inputs": {}}}))
    add_progress_handler(Recorder("recorder"))
    with CurrentNodeContext("prompt", "7"):
        yield seen


def sample(model, videos=1, steps=2, callback=lambda *_: None, pause=0.0):
    import comfy.sample

    def slow(*step):
        callback(*step)
        time.sleep(pause)

    noise = torch.randn(videos * FRAMES, 4, SIDE, SIDE, generator=torch.manual_seed(0))
    text = [[torch.ones(1, 77, 64), {}]]
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            1.0,
            "euler",
            "normal",
            text,
            text,
            noise * 0,
            callback=slow,
            seed=0,
        )


def test_successive_frames_are_sent_while_sampling(native, tiny_model, previews_on, sent):
    model = native("model").load_native_model(tiny_model)

    def frames():
        return {image[1].tobytes() for _, _, image, _ in sent if image}

    def watch(step, *_):
        if step:  # the player has what the first step made
            wait_until(lambda: len(frames()) >= 3, "three frames")

    sample(model, callback=watch)
    assert {node for *_, node in sent} == {"7"}


def test_the_callback_and_the_result_stay_those_of_core(native, tiny_model, previews_on, sent):
    model = native("model").load_native_model(tiny_model)
    steps = []
    shown = sample(model, callback=lambda step, x0, x, total: steps.append((step, x0.shape, total)))
    assert steps == [(0, (FRAMES, 4, SIDE, SIDE), 2), (1, (FRAMES, 4, SIDE, SIDE), 2)]
    plain = model.clone()
    plain.remove_wrappers_with_key("outer_sample", "mcm_previews")
    assert torch.equal(shown, sample(plain))


def test_previews_off_means_off(native, tiny_model, sent, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    before = threading.active_count()
    sample(native("model").load_native_model(tiny_model), pause=0.2)
    assert not [image for _, _, image, _ in sent if image]
    assert threading.active_count() == before


def test_nothing_is_sent_after_sampling_even_when_it_fails(native, tiny_model, previews_on, sent):
    def interrupted(step, *_):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(native("model").load_native_model(tiny_model), steps=3, callback=interrupted)
    count = len(sent)
    time.sleep(0.4)
    assert len(sent) == count


def test_the_interrupt_button_still_reaches_the_sampler(native, tiny_model, previews_on, sent):
    import comfy.model_management as management

    steps = []

    def press(step, *_):
        steps.append(step)
        if step:  # the player has what the first step made
            wait_until(lambda: len(sent) > 2, "previews before the button is pressed")
            management.interrupt_current_processing()

    with pytest.raises(management.InterruptProcessingException):
        sample(native("model").load_native_model(tiny_model), steps=50, callback=press)
    assert steps == [0, 1]


def test_videos_of_a_batch_are_shown_side_by_side(native):
    import latent_preview

    previewer = latent_preview.Latent2RGBPreviewer([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    x0 = torch.arange(2 * FRAMES).float().div(16).view(-1, 1, 1, 1).expand(-1, 4, SIDE, SIDE)
    images = native("previews").preview_frames(previewer, x0, FRAMES)
    assert [image.size for image in images] == [(2 * SIDE, SIDE)] * FRAMES
    left, right = (images[3].getpixel((x, 0))[0] for x in (0, SIDE))
    assert left == int((3 / 16 + 1) / 2 * 255)
    assert right == int((11 / 16 + 1) / 2 * 255)

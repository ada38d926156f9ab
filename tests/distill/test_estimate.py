"""The estimate of memory: against what a real step allocates, and at the published sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import wan_files
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.cli.main import main
from trainer.config import load_config
from trainer.distill.distiller import Distiller
from trainer.distill.estimate import META, estimate, made_batch
from trainer.distill.session import build_parts, build_session, build_student, new_memory
from trainer.distill.step import gradients
from trainer.families import FAMILIES, family_named, load_model
from trainer.lora.pairs import lora_targets, weight_shapes
from trainer.models.tiny_vae import TinyVae
from trainer.runs.guards import NanGuard

KEYS = Path(__file__).parents[1] / "data_keys"
LITE = "efficientnet-lite0"
WAN: dict[str, dict[str, Any]] = {
    "wan": {},
    "wan, exact VAE": {},
    "wan, transformer alone": {"adversarial.weight": 0.0, "data.width": 256},
}
"""Settings by what is decoded with while it trains."""
CONVOLUTIONS = ("aten::slow_conv3d_forward", "aten::convolution_backward")
OFFICIAL_MODULES = {"modelscope": 482, "animatediff": 530}


def files(family: str, request) -> dict[str, Any]:
    """Settings that name the files of a tiny model, and those that only it needs."""
    if family == "modelscope":
        return {"model": str(request.getfixturevalue("tiny_model"))}
    if family in WAN:
        models = request.getfixturevalue("wan_models")
        model = next((models["exact" in family] / "diffusion_models").iterdir())
        return {"model": str(model), "data.frames": 17, **WAN[family]}
    motion = request.getfixturevalue("motion_module_file")
    return {"model": str(request.getfixturevalue("sd15_checkpoint")), "motion_module": motion}


@pytest.fixture(scope="module")
def wan_models(tmp_path_factory):
    """ComfyUI's folders of models with a tiny Wan: with a tiny VAE and without.

    The tiny VAE is large enough to be missed where it is forgotten. Inside a convolution PyTorch's
    CPU takes memory that `MemoryMeter` does not see: the columns of a 3-D one, and on the way back
    a second copy of a gradient: a fifth of the step's memory with recomputing.
    """
    tiny = wan_files.save_comfyui(tmp_path_factory.mktemp("ComfyUI") / "models")
    state = wan_files.tiny_vae_state(TinyVae((128, 32, 8, 4)))
    wan_files.save_half(state, tiny / "vae_approx" / "taew2_1.safetensors", torch.float32)
    exact = tmp_path_factory.mktemp("exact") / "models"
    shutil.copytree(tiny, exact, ignore=shutil.ignore_patterns("vae_approx"))
    return tiny, exact


def settings(**more: Any) -> dict[str, Any]:
    return {
        "start_from": "none",
        "data.batch_size": 2,
        "data.frames": 16,
        "data.height": 64,
        "data.width": 64,
        "data.library_clips": 1,
        "trajectory.ddim_timesteps": 8,
        "trajectory.real_probability": 0.001,
        "trajectory.replay_probability": 0.0,
        "adversarial.features": "mini",
        "hardware.device": "cpu",
        "hardware.decode_precision": "fp32",
        "lora.rank": 4,
        **more,
    }


def allocated_peak(distiller: Distiller, step: int, inside: bool) -> int:
    """Bytes above the start that PyTorch's allocator gave out during a step, by its profiler; those
    that a convolution takes and gives back itself count only with ``inside``.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        distiller.step(step)
    events = recorded.profiler.kineto_results.events()
    convolutions = [e for e in events if e.name() in CONVOLUTIONS and not inside]
    edges = [(e.start_ns(), 0, 1) for e in convolutions]
    edges += [(e.end_ns(), 0, -1) for e in convolutions]
    changes = [(e.start_ns(), e.nbytes(), 0) for e in events if e.name() == "[memory]"]
    now = peak = depth = 0
    for _, change, edge in sorted(edges + changes):
        now, depth = now + change, depth + edge
        peak = peak if depth else max(peak, now)
    return peak


def optimizers(session) -> list[torch.optim.Optimizer]:
    both = session.optimizer, session.discriminator_optimizer
    return [optimizer for optimizer in both if optimizer is not None]


def resident(session) -> int:
    """Bytes of networks, averages and optimizer states, by counting their elements."""
    model = session.model
    judging = session.parts.features, session.parts.discriminator
    decoders = model.codec.vae, model.codec.quick.vae, session.parts.decoder.vae
    modules = [model.network, *decoders, model.text.loaded, *judging]
    tensors = [t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())]
    tensors += session.ema.copies
    for optimizer in optimizers(session):
        tensors += [t for state in optimizer.state.values() for t in state.values()]
    sizes = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("family", "recomputing"),
    [
        ("modelscope", False),
        ("modelscope", True),
        ("animatediff", True),
        *((family, recomputing) for family in WAN for recomputing in (False, True)),
    ],
)
def test_the_estimate_is_within_15_percent_of_what_a_step_allocates(
    family, recomputing, request, tmp_path
):
    more = {**files(family, request), "hardware.gradient_checkpointing": recomputing}
    more["prompts"] = tmp_path / "prompts.txt"
    more["prompts"].write_text("a red star growing\n", encoding="utf-8")
    config = load_config(overrides=settings(**more))
    session = build_session(config, Accelerator(cpu=True), lambda _: None, lambda *_: None)
    distiller = Distiller(session, NanGuard())
    distiller.step(0)  # from now on there is an optimizer state
    for optimizer in optimizers(session):
        optimizer.zero_grad(set_to_none=True)
    measured = allocated_peak(distiller, 1, inside=family not in WAN)
    found = estimate(config)
    assert found.step == pytest.approx(measured, rel=0.15)
    assert found.total == pytest.approx(measured + resident(session), rel=0.15)
    assert found.total - found.step == pytest.approx(resident(session), rel=0.05)


class HostWaits(TorchDispatchMode):
    """Lists operations that make the host wait for the device: values read, copies across."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # A number beside a tensor is a CPU tensor without axes; it travels with the kernel.
        places = {x.device.type for x in tensors if x.ndim}
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(x.dtype == torch.bool for x in tensors)
        if name.startswith(self.READING) or masked or len(places) > 1:
            self.found.append(f"{name} {sorted(places)}")
        return out


@pytest.mark.parametrize(
    ("family", "ratio"),
    [
        ("modelscope", "gradient_ratio"),
        ("modelscope", "fixed"),
        ("animatediff", "gradient_ratio"),
        ("wan", "gradient_ratio"),
        ("wan, exact VAE", "gradient_ratio"),
    ],
)
def test_the_devices_half_of_a_step_never_waits_for_the_host(family, ratio, request):
    more = {"adversarial.features": LITE, "adversarial.weight_mode": ratio}
    more |= {"hardware.gradient_checkpointing": True, "hardware.device": "auto"}
    more |= {"hardware.precision": "fp16", "adversarial.r1_weight": 1.0}
    more |= {"hardware.offload_idle": False}
    config = load_config(overrides=settings(**{**files(family, request), **more}))
    model = load_model(config.model, **config.companions)
    parts = build_parts(config, build_student(config, model, META, lambda _: None), META)
    batch, memory = made_batch(parts), new_memory(config)
    with HostWaits() as waits:
        outcome = gradients(parts, batch, memory, 1.0)
    assert waits.found == []
    assert outcome.prediction.device == META


def test_the_detector_of_waits_sees_them():
    with HostWaits() as waits:
        x = torch.ones(3)
        x[x > 0].sum().item()
        x.to("meta")
    assert [entry.split()[0] for entry in waits.found] == [
        "index", "_local_scalar_dense", "_to_copy",
    ]  # fmt: skip


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, value in tree.items():
        place = f"{path}.{name}" if path else name
        found |= leaves(value, place) if isinstance(value, dict) else {place: value}
    return found


@pytest.mark.parametrize("family", [f.name for f in FAMILIES if f.layers.official])
def test_full_size_skeletons_have_the_modules_of_the_official_loras(family):
    text = (KEYS / f"official_{family}.json").read_text(encoding="utf-8")
    official = leaves(json.loads(text)["modules"])
    unet = family_named(family).skeleton(META).network
    shapes = weight_shapes(unet)
    targets = {path: shapes[path] for path in lora_targets(unet)}
    assert len(targets) == len(official) == OFFICIAL_MODULES[family]
    for path, (inputs, outputs, *kernel) in official.items():
        assert targets[path] == (outputs, inputs, *(kernel * 2)), path


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_full_size_shapes_go_through_the_family(family):
    model = family_named(family).skeleton(META)
    shape = model.latent_shape(model.frames, model.height, model.width)
    latents = torch.empty(1, *shape, device=META)
    text = torch.empty(1, 77, model.text.width, device=META)
    with torch.no_grad():
        eps = model.predict(latents, torch.empty(1, dtype=torch.long, device=META), text)
    assert eps.shape == latents.shape and eps.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "size", "goal"), [("modelscope", 256, 8), ("animatediff", 512, 16)]
)
def test_the_goals_of_memory_are_met_at_full_size(family, size, goal, capsys):
    command = ["preflight", "--estimate", "--family", family, "--card", str(goal)]
    more = ["--adversarial.features=efficientnet-lite0", "--data.batch-size=1"]
    more += [f"--data.height={size}", f"--data.width={size}", "--data.frames=16"]
    assert main([*command, *more]) == 0
    shown = capsys.readouterr().out
    peak = next(line for line in shown.splitlines() if line.startswith("Peak memory"))
    assert float(peak.split()[2]) < 0.9 * goal
    assert f"The run fits a card with {goal} GB." in shown


def test_an_estimate_needs_a_known_family(capsys):
    assert main(["preflight", "--family", "modelscope"]) == 1
    assert "add `--estimate`" in capsys.readouterr().err
    assert main(["preflight", "--estimate", "--family", "sdxl"]) == 1
    assert "`family`='sdxl' is not known; use modelscope, " in capsys.readouterr().err

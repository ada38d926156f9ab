"""MODELs that ComfyUI loads by itself and this pack samples as they are: text-to-video Wan.

Their clips are LATENTs of five axes (videos, C, f, h, w), their layers have the original names,
and their noise levels are a flow's, which need no more than the right shift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .info import VideoInfo

if TYPE_CHECKING:
    from ...trainer.families.record import Base, Family

FPS = 16
STRIDE = 4
"""Frames in every latent frame but the first, which holds one."""
SIDES = 16
"""Sides are multiples of this many pixels: 8 of the VAE, two latents a patch."""
SHIFT = 5.0
"""Of few-step sampling, where a LoRA does not say."""


def core_info(model: Any) -> VideoInfo | None:
    """What this pack needs to know of MODEL ``model``; None for one that is no Wan.

    Raises ValueError for a Wan that is given more than a prompt (I2V, VACE, ...), and for one with
    latents of another kind (5B).
    """
    import comfy.model_base

    base = getattr(model, "model", None)
    if not isinstance(base, comfy.model_base.WAN21):
        return None
    inputs = base.diffusion_model.patch_embedding.weight.shape[1]
    if type(base) is not comfy.model_base.WAN21 or inputs != base.latent_format.latent_channels:
        raise ValueError(
            f"This MODEL is a Wan of another kind ({type(base).__name__}, {inputs} input "
            "channels). This pack's nodes are for text-to-video models: Wan 2.1 (1.3B, 14B) and "
            "Wan 2.2 14B. ComfyUI's own 'LoraLoaderModelOnly' and 'ModelSamplingSD3' do not ask "
            "what the LoRA was made for."
        )
    return _info(model)


def size_of_file(path: Path) -> tuple[int, int, int]:
    """Width and height in pixels and frames to offer for the file of a text-to-video Wan, by its
    header. Raises ValueError for a file of another kind.
    """
    from ...trainer.models.wan import CHANNELS, plain_name, refuse_foreign
    from ...trainer.models.weights import read_file, shapes_only

    with shapes_only():
        weights = {plain_name(name): value for name, value in read_file(path).items()}
    refuse_foreign(weights, path)
    first = weights.get("patch_embedding.weight")
    family, base = _recognised(_linear_shapes(weights.items()))
    if family is None or first is None or first.shape[1] != CHANNELS:
        raise ValueError(f"'{path.name}' is not a text-to-video Wan.")
    return (base or family.bases[0]).size


def _recognised(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Family | None, Base | None]:
    """The family that layers of these shapes belong to, and the published size if it is one."""
    from ...trainer.lora.match import guess_base
    from ...trainer.lora.pairs import family_of_layers

    widths = {path: shape[1] for path, shape in shapes.items()}
    return family_of_layers(shapes), guess_base(widths)


def _info(model: Any) -> VideoInfo | None:
    from .prediction import checkpoint_path

    family, base = _recognised(layer_shapes(model))
    if family is None:
        return None
    width, height, frames = (base or family.bases[0]).size
    file = checkpoint_path(model)
    label = base.label if base else family.title
    return VideoInfo(
        family=family.name,
        name=file.stem if file else label,
        frames=family.frames,
        default_frames=frames,
        width=width,
        height=height,
        fps=FPS,
        licence=family.licence,
        scheduler_config={},
        stride=STRIDE,
        sides=SIDES,
        weight_files=(file,) if file else (),
        part=_part_of(file) if file else "",
    )


def _part_of(file: Path) -> str:
    """Which part of the noise levels the network of ``file`` is for, by its name; empty for all."""
    from ...trainer.models.wan import expert_of

    which = expert_of(file)
    return f"{which} noise" if which else ""


def layer_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the linear layers of a core MODEL by the trainer's paths.

    By name, not by class: ComfyUI's quantised layers, and those of GGUF loaders, are no
    `nn.Linear`, but their weights know the shape that they stand for.
    """
    return _linear_shapes(model.model.diffusion_model.named_parameters())


def _linear_shapes(weights: Iterable[tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Of ``weights`` by their original names."""
    found = {}
    for name, weight in weights:
        path = _path_of(name.removesuffix(".weight"))
        if path is not None and name.endswith(".weight") and len(weight.shape) == 2:
            found[path] = tuple(weight.shape)
    return found


def _path_of(name: str) -> str | None:
    from ...trainer.families import FAMILIES

    paths = (family.layers.path_of(name) for family in FAMILIES if family.layers.original)
    return next((path for path in paths if path is not None), None)


def core_name(paths: Any) -> Callable[[str], str]:
    """From the trainer's path of a layer to its name in ComfyUI, for the family of ``paths``."""
    from ...trainer.lora.pairs import layers_of

    original = layers_of(paths).original
    assert original is not None
    return lambda path: original(path) or path


def flow_sampling(model: Any, shift: float | None, low: float | None = None) -> Any:
    """The levels of a flow at ``shift``, as core's *ModelSamplingSD3* makes them.

    KSampler's `lcm` with `simple` then takes a student's levels, and its new noise is that of
    consistency sampling (`CONST.noise_scaling`). A student of the levels above ``low`` leads to a
    state there, which the sampler hands on as "leftover noise"; new noise is put on such a state.
    """
    import comfy.model_sampling as kinds

    from ...trainer.diffusion.part import FlowPart

    part = FlowPart(shift or SHIFT, low=low or 0.0)

    class FewStepFlow(kinds.ModelSamplingDiscreteFlow, kinds.CONST):
        """Says how many levels it has, as the other few-step samplings do."""

        @property
        def original_steps(self) -> int:
            return len(self.sigmas)

        def calculate_denoised(self, sigma: Any, model_output: Any, model_input: Any) -> Any:
            x0 = super().calculate_denoised(sigma, model_output, model_input)
            return part.landing(model_input, x0, sigma) if low else x0

        def noise_scaling(
            self, sigma: Any, noise: Any, latent_image: Any, max_denoise: bool = False
        ) -> Any:
            if not low:
                return super().noise_scaling(sigma, noise, latent_image, max_denoise)
            noise = getattr(self, "noise_scale", 1.0) * noise
            return part.renoise(latent_image, noise, sigma).to(noise)

    own = model.get_model_object("model_sampling")
    sampling = FewStepFlow(model.model.model_config)
    sampling.set_parameters(shift=shift or SHIFT, multiplier=own.multiplier)
    if hasattr(own, "noise_scale"):  # of newer versions of ComfyUI
        sampling.set_noise_scale(own.noise_scale)
    return sampling

"""Core's model patches on a diffusers video UNet: FreeU, PAG, SAG, HyperTile, ToMe, Deep Shrink.

Nodes of ComfyUI change attention and blocks of core's own UNet through functions in
``transformer_options``. Here the same functions are called at the same points of a diffusers UNet,
with frames as rows of the batch; `blocks.py` defines these points. `unsupported` names kinds of
patches without such a point, so that they are reported.

Source of the arguments and results of patches: ComfyUI's `ldm/modules/attention.py` and
`ldm/modules/diffusionmodules/openaimodel.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Layer, down_layers, middle_layer, up_layers

Options = dict[str, Any]
ATTENTION = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
BLOCKS = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")
REPLACED = ("attn1", "attn2")
ACTED = "mcm_acted"
"""In ``transformer_options``: ids of the attention patches that changed something in this run."""


def unsupported(options: Mapping[str, Any]) -> list[str]:
    """The kinds of patches in ``transformer_options`` `options` that are not supported here."""
    lost = [kind for kind in options.get("patches", {}) if kind not in ATTENTION + BLOCKS]
    return lost + [kind for kind in options.get("patches_replace", {}) if kind not in REPLACED]


def report_lost_patches(executor: Any, *args: Any, **named: Any) -> Any:
    """Around ``CFGGuider.outer_sample``: report, in every run, which patches do not work, and
    afterwards which ones changed nothing.
    """
    from .notices import tell

    options = executor.class_obj.model_options["transformer_options"]
    lost = unsupported(options)
    if lost:
        tell(
            f"These model patches have no effect on a video model: {', '.join(sorted(lost))}. They "
            "change parts that only an image UNet has; remove the node that adds them."
        )
    acted = options[ACTED] = set()
    result = executor(*args, **named)
    for name in idle_patches(options.get("patches", {}), acted):
        tell(
            f"{name} changed nothing in this run, because the frames are too small for it. Make "
            "larger frames, or remove the node."
        )
    return result


def idle_patches(patches: Mapping[str, Any], acted: set[int]) -> list[str]:
    """The nodes whose attention patches all returned their input unchanged; ``acted`` holds the ids
    of those that did not.
    """
    nodes: dict[str, bool] = {}
    for kind in ATTENTION:
        for patch in patches.get(kind) or ():
            name = getattr(patch, "__qualname__", type(patch).__name__).partition(".")[0]
            nodes[name] = nodes.get(name, False) or id(patch) in acted
    return sorted(name for name, has_acted in nodes.items() if not has_acted)


@contextmanager
def core_patches(unet: Any, options: Options, shape: torch.Size) -> Iterator[None]:
    """While open, the patches in ``transformer_options`` `options` act on `unet`.

    `shape` is that of the latents (rows, C, h, w). Without patches nothing is changed. Layers are
    restored on exit, also after an error.
    """
    patches, replaced = options.get("patches", {}), options.get("patches_replace", {})
    with ExitStack() as stack:
        if any(patches.get(kind) for kind in ATTENTION) or any(
            replaced.get(kind) for kind in REPLACED
        ):
            stack.callback(_patch_attention(unet, options, shape))
        for hook in _block_hooks(unet, {**options, "original_shape": list(shape)}, patches):
            stack.callback(hook.remove)
        yield


def _patch_attention(unet: Any, options: Options, shape: torch.Size) -> Callable[[], None]:
    """Set processors that call patches on the spatial attention of `unet`; returns the undo
    function.
    """
    told = {k: v for k, v in options.items() if k not in ("patches", "patches_replace")}
    told["original_shape"] = list(shape)
    before: list[tuple[Any, Any]] = []
    layers = [*down_layers(unet), middle_layer(unet), *up_layers(unet)]
    for number, layer in enumerate(each for each in layers if each.attention is not None):
        for index, block in enumerate(layer.attention.transformer_blocks):
            place = {"block": layer.place, "block_index": index, "transformer_index": number}
            for kind in REPLACED:
                attention = getattr(block, kind)
                before.append((attention, attention.processor))
                attention.processor = PatchedAttention(
                    kind,
                    {**told, **place},
                    options.get("patches", {}),
                    options.get("patches_replace", {}).get(kind, {}),
                )

    return partial(_restore, before)


def _restore(processors: list[tuple[Any, Any]]) -> None:
    for attention, processor in processors:
        attention.processor = processor


class PatchedAttention:
    """A diffusers attention processor that lets core's patches act, with core's attention.

    ``kind`` is "attn1" (within a frame) or "attn2" (to the text), ``told`` the options that core
    passes to patches (block, shapes, conditioning), ``replaced`` maps blocks to functions that
    compute attention instead.
    """

    def __init__(self, kind: str, told: Options, patches: Mapping, replaced: Mapping) -> None:
        self.change = list(patches.get(f"{kind}_patch") or ())
        self.finish = list(patches.get(f"{kind}_output_patch") or ())
        place = told["block"]
        self.replace = replaced.get((*place, told["block_index"])) or replaced.get(place)
        self.told = told
        self.acted = told.get(ACTED, set())

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_unused: Any,
    ) -> Tensor:
        """Output (rows, tokens, D) of attention from ``hidden_states`` (rows, tokens, D) to itself
        or to the text (rows, L, D of the text).
        """
        from comfy.ldm.modules.attention import optimized_attention

        told = {
            **self.told,
            "n_heads": attn.heads,
            "dim_head": attn.inner_dim // attn.heads,
            "attn_precision": None,
        }
        n = hidden_states
        context = n if encoder_hidden_states is None else encoder_hidden_states
        value = context
        for patch in self.change:
            before = n, context, value
            n, context, value = patch(n, context, value, told)
            if any(a is not b for a, b in zip(before, (n, context, value), strict=True)):
                self.acted.add(id(patch))
        query, key, value = attn.to_q(n), attn.to_k(context), attn.to_v(value)
        if self.replace is not None:
            n = self.replace(query, key, value, told)
        else:
            n = optimized_attention(query, key, value, heads=attn.heads, mask=attention_mask)
        n = attn.to_out[1](attn.to_out[0](n))
        for patch in self.finish:
            before = n
            n = patch(n, told)
            if n is not before:
                self.acted.add(id(patch))
        return n


def _block_hooks(unet: Any, options: Options, patches: Mapping) -> list[Any]:
    """Hooks for the patches of blocks; core runs them after an input block, before or after its
    output is kept for the skip connection, and on both inputs of an output block.
    """
    hooks = []
    kept, after, out = (list(patches.get(kind) or ()) for kind in BLOCKS)
    inputs = down_layers(unet)
    followers = [*inputs[1:], middle_layer(unet)]
    for layer, follower in zip(inputs, followers, strict=True):
        if kept:
            change = partial(_run, kept, layer, options)
            hooks.append(layer.exit.register_forward_hook(partial(_after, change)))
        if after:
            change = partial(_run, after, layer, options)
            before = partial(_before, change)
            hooks.append(follower.entry.register_forward_pre_hook(before, with_kwargs=True))
    return hooks + (OutputBlocks(unet, out, options).hooks if out else [])


def _run(patches: list, layer: Layer, options: Options, h: Tensor) -> Tensor:
    for patch in patches:
        h = patch(h, {**options, "block": layer.place})
    return h


def _after(change: Callable[[Tensor], Tensor], module: nn.Module, args, output):
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def _before(change: Callable[[Tensor], Tensor], module: nn.Module, args: tuple, named: dict):
    """Change the first argument of a layer, which diffusers gives by place or by name."""
    if args:
        return (change(args[0]), *args[1:]), named
    name = next(iter(named))
    return args, {**named, name: change(named[name])}


class OutputBlocks:
    """Calls ``patch(h, skip, options) -> (h, skip)`` before core's output blocks join the two.

    Diffusers joins them inside its up blocks, so `h` is changed where it leaves the layer before
    and the skip connection where the layer has it joined; a patch may give `h` the size of `skip`
    (Deep Shrink), not the other way round. All tensors are (rows, C, h, w).
    """

    def __init__(self, unet: Any, patches: list, options: Options) -> None:
        self.patches, self.options = patches, options
        self.sizes: list[torch.Size] = []  # of the skip connections of one forward, from the top
        self.skips: list[Tensor] = []  # of the up block at work, the next one last
        self.hooks: list[Any] = []
        for layer in down_layers(unet):
            self.hooks.append(layer.exit.register_forward_hook(self._note_size))
        layers = up_layers(unet)
        for block in unet.up_blocks:
            own, layers = layers[: len(block.resnets)], layers[len(block.resnets) :]
            enter = partial(self._enter, own[0])
            self.hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            for layer, following in zip(own, own[1:], strict=False):
                change = partial(_after, partial(self._patched, following))
                self.hooks.append(layer.exit.register_forward_hook(change))
                joined = partial(_before, partial(self._with_skip, following))
                entered = following.entry.register_forward_pre_hook(joined, with_kwargs=True)
                self.hooks.append(entered)

    def _note_size(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.sizes.append((output[0] if isinstance(output, tuple) else output).shape[-2:])

    def _enter(self, first: Layer, block: Any, args: tuple, named: dict) -> tuple[tuple, dict]:
        """An up block begins: its first layer's two inputs are still apart."""
        self.skips = list(named["res_hidden_states_tuple"])
        h = self._patched(first, named["hidden_states"])
        given = (*named["res_hidden_states_tuple"][:-1], self.skips.pop())
        del self.sizes[-len(block.resnets) :]
        above = {"upsample_size": self.sizes[-1]} if self.sizes else {}
        return args, {**named, **above, "hidden_states": h, "res_hidden_states_tuple": given}

    def _patched(self, layer: Layer, h: Tensor) -> Tensor:
        skip = self.skips[-1].clone()
        h = h.clone()  # FreeU changes its argument in place
        for patch in self.patches:
            h, skip = patch(h, skip, {**self.options, "block": layer.place})
        self.skips[-1] = skip
        return h

    def _with_skip(self, layer: Layer, joined: Tensor) -> Tensor:
        return torch.cat([joined[:, : -layer.skip], self.skips.pop()], dim=1)

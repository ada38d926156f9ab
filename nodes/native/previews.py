"""Animated previews: every frame of the clip while it is sampled, not only the first.

Core's previews show row 0 of a latent batch. Here a wrapper on the MODEL looks at the same
intermediate results and plays all frames, one after another, until the next step or the end.
Then the images are removed (``web/js/mcm_previews.js``), because the finished clip is shown
elsewhere. Nothing of core is replaced: its callback still runs, draws the progress bar and can be
interrupted.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .core import wrap
from .info import video_info
from .notices import PREVIEW_END, executed_node, send

log = logging.getLogger(__name__)

MAX_VIDEOS = 4
"""Videos of a batch that are shown, side by side."""


def add_previews(model: Any) -> None:
    """Make the samplers play previews for MODEL ``model`` (a ModelPatcher), and its clones."""
    wrap(model, "OUTER_SAMPLE", "mcm_previews", _sample_with_previews)


def _sample_with_previews(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Around ``CFGGuider.outer_sample(noise, latent_image, sampler, sigmas, denoise_mask,
    callback, ...)``.
    """
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback")
    position = names.index("callback")
    callback = args[position] if len(args) > position else kwargs.get("callback")
    player = start_player(executor.class_obj) if callback else None
    if player is None:
        return executor(*args, **kwargs)

    def shown(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        callback(step, x0, x, total)
        player.show(step + 1, total, x0)

    if len(args) > position:
        args = (*args[:position], shown, *args[position + 1 :])
    else:
        kwargs["callback"] = shown
    try:
        return executor(*args, **kwargs)
    finally:
        player.close()


def start_player(guider: Any) -> Player | None:
    """A player for the clips that ``guider`` samples; None where previews are off
    (``--preview-method none``) or no node is being executed.
    """
    import latent_preview
    from comfy_api.latest import ComfyAPISync

    node = executed_node()
    if node is None:
        return None
    model = guider.model_patcher
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    if previewer is None:
        return None
    info = video_info(model)
    frames = guider.model_options["transformer_options"].get("mcm_frames")
    return Player(
        decode=lambda rows: preview_frames(previewer, rows, frames),
        send=ComfyAPISync().execution.set_progress,
        fps=info.fps / max(1, info.stride),
        ended=lambda: send(PREVIEW_END, node),
    )


def preview_frames(previewer: Any, x0: Tensor, frames: int | None) -> list[Any]:
    """One PIL image per frame of latents ``x0`` (videos * F, 4, h, w) or (videos, C, f, h, w), the
    videos side by side.
    """
    if x0.ndim == 5:
        wide = x0[:MAX_VIDEOS].permute(2, 1, 3, 0, 4).flatten(-2)  # (f, C, h, videos * w)
        return [previewer.decode_latent_to_preview(frame[None, :, None]) for frame in wide]
    count = frames if frames and x0.shape[0] % frames == 0 else x0.shape[0]
    videos = x0.unflatten(0, (-1, count))[:MAX_VIDEOS]
    wide = videos.permute(1, 2, 3, 0, 4).flatten(-2)  # (F, 4, h, videos * w)
    return [previewer.decode_latent_to_preview(frame[None]) for frame in wide]


class Player:
    """Sends the latest images in a loop, from a thread, at ``fps`` frames per second.

    ``send(value, total, preview_image=image)`` must not be core's progress hook: that one consumes
    the user's interrupt, which the sampling thread needs.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], list[Any]],
        send: Callable[..., None],
        fps: float,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._decode, self._send, self._pause = decode, send, 1 / max(1.0, fps)
        self._ended = ended
        self._images: list[Any] = []
        self._progress = (0, 1)
        self._stop = threading.Event()
        context = contextvars.copy_context()  # names the node whose previews these are
        self._thread = threading.Thread(target=context.run, args=(self._play,), daemon=True)

    def show(self, value: int, total: int, x0: Tensor) -> None:
        """Play ``x0`` (videos * F, 4, h, w) from now on; ``value`` of ``total`` steps are done."""
        self._progress, self._images = (value, total), self._decode(x0)
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()

    def close(self) -> None:
        """Stop; returns when nothing more will be sent. The browser then removes the last image,
        which would stay as a still and cover nodes below the sampler.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ended()

    def _play(self) -> None:
        shown = 0
        while not self._stop.is_set():
            images, (value, total) = self._images, self._progress
            try:
                self._send(value, total, preview_image=images[shown % len(images)])
            except Exception as error:  # a preview must never end a sampling run
                log.warning("Previews of all frames stopped: %s", error)
                return
            shown += 1
            self._stop.wait(self._pause)

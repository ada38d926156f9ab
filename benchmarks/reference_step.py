"""The baseline: the same step in the shape of the reference MCM code (yhZhai/mcm).

Written here from its description in the paper and its published structure. It is the yardstick of
``step_cost.py`` and differs from :class:`trainer.distill.distiller.Distiller` in organisation only:

* the teacher is a second UNet in fp32, called for the prompt and for the empty prompt apart;
* every clip of the batch is encoded in every step, as are all texts;
* the student runs first, so that its graph lies in memory while teacher and target run;
* one backward pass from the sum of all losses, discriminator included, fills the discriminator's
  gradients too, which are thrown away;
* for the discriminator's own step the student's frames are decoded and looked at a second time.

Mistakes of the reference that would change the numbers (dropout, one draw for the whole batch,
unlike frames for real and fake, "R1") are not repeated: losses must be equal.
"""

from __future__ import annotations

import repository  # noqa: F401
import torch
from torch import Tensor

from trainer.adversarial.augment import apply_augment
from trainer.adversarial.frame_losses import LossMemory
from trainer.adversarial.losses import generator_loss
from trainer.diffusion.noise import guided
from trainer.distill import step as judging
from trainer.distill.batch import Batch, Session, StyleBatch
from trainer.distill.distiller import Distiller
from trainer.distill.step import Outcome, Points, motion_losses
from trainer.families import load_model
from trainer.runs.guards import NanGuard

ENCODED_AT_ONCE = 32


class ReferenceDistiller(Distiller):
    """A distiller whose micro-step is organised like the reference's.

    ``clips`` (N, 3, F, H, W) are the videos in pixels; the session's own motion source only says
    which prompt each has. The session must have images and a discriminator.
    """

    def __init__(self, session: Session, guard: NanGuard, clips: Tensor):
        super().__init__(session, guard)
        self.clips = clips
        self.teacher = load_model(session.config.model).network.float().to(session.model.device)
        self.empty = session.model.encode_text([""])

    def gradients(self, batch: Batch, memory: LossMemory, share: float) -> Outcome:
        s, parts = self.session, self.session.parts
        assert parts.discriminator is not None and batch.style is not None
        earlier = self._start(batch)
        latents = s.model.noise.add_noise(earlier, batch.noise, batch.level)
        prediction = parts.student.predict(latents, batch.level, batch.text)
        following = self.teacher_step(latents, batch)
        target = parts.student.target(following, batch.next_level, batch.text)
        logs = motion_losses(parts, prediction, Points(latents, target, earlier), batch)
        style, adversarial, caption = self._generator_style(prediction, batch.style)
        judged = [(p, p.grad) for p in parts.discriminator.parameters()]
        parts.discriminator.zero_grad(set_to_none=True)
        ((logs["loss"] + s.config.recipe.adversarial.weight * style) * share).backward()
        for parameter, before in judged:  # what the student's loss has put there
            parameter.grad = before
        fake = self._second_look(prediction, batch.style)
        logs |= {"adversarial": adversarial, "caption": caption}
        logs |= judging.discriminator_losses(parts, batch.style, fake, share)
        s.model._text_cache.clear()  # no text outlives a step
        detached = {name: value.detach().float() for name, value in logs.items()}
        return Outcome(detached, prediction.detach(), memory)

    @torch.no_grad()
    def _start(self, batch: Batch) -> Tensor:
        """The clips (B, C, F, h, w) that noise is added to."""
        earlier = self._encode(self.clips[batch.origins].to(batch.noise.device))
        stored = batch.earlier.flatten(1).abs().sum(1) > 0
        earlier[stored] = batch.earlier[stored]
        if batch.fresh is not None and batch.start is not None:
            made = self.session.parts.student.generate(
                batch.start, batch.most.expand(len(batch.start)), batch.text[batch.fresh]
            )
            earlier[batch.fresh] = made
        return earlier

    def _encode(self, clips: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) of all ``clips`` (B, 3, F, H, W), used or not."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        encode = self.session.model.codec.encode_frames
        parts = [encode(part) for part in frames.split(ENCODED_AT_ONCE)]
        return torch.cat(parts).unflatten(0, (len(clips), -1)).transpose(1, 2).contiguous()

    @torch.no_grad()
    def teacher_step(self, latents: Tensor, batch: Batch) -> Tensor:
        """One guided DDIM step (B, C, F, h, w) of the separate teacher, in two passes."""
        denoise, path = self.session.model.family.denoise, self.session.model.noise
        text, time = batch.text.float(), path.model_time(batch.level)
        empty = self.empty.expand_as(batch.text).float()
        cond = denoise(self.teacher, latents, time, text).float()
        uncond = denoise(self.teacher, latents, time, empty).float()
        reading = path.read(latents, guided(cond, uncond, batch.guidance), batch.level)
        return path.add_noise(*reading, batch.next_level)

    def _generator_style(
        self, prediction: Tensor, batch: StyleBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The student's adversarial and caption loss, their weighted sum first, through a
        discriminator that is not frozen.

        Only its mode is eval: a power iteration of the spectral norm here would make the losses
        differ from ours.
        """
        parts, options = self.session.parts, self.session.config.recipe.adversarial
        assert parts.features is not None and parts.discriminator is not None
        pixels = self._decoded(prediction, batch)
        maps = parts.features(apply_augment(pixels, batch.augment_fake))
        parts.discriminator.eval()
        adversarial = generator_loss(parts.discriminator(maps, batch.text), options.loss)
        parts.discriminator.train()
        caption = prediction.new_zeros(())
        scores = parts.features.score_captions(pixels, batch.captions)
        if options.caption_weight and scores is not None:
            caption = scores.mean()
        return adversarial + options.caption_weight * caption, adversarial, caption

    def _decoded(self, clips: Tensor, batch: StyleBatch) -> Tensor:
        return self.session.model.codec.decode_frames(clips, batch.frames)

    @torch.no_grad()
    def _second_look(self, prediction: Tensor, batch: StyleBatch) -> tuple[Tensor, ...]:
        """The same frames decoded and looked at again, for the discriminator's own loss."""
        features = self.session.parts.features
        assert features is not None
        pixels = self._decoded(prediction.detach(), batch)
        return tuple(features(apply_augment(pixels, batch.augment_fake)))

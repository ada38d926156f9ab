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
from trainer.adversarial.losses import generator_loss
from trainer.diffusion.solver import ddim_step, guided_eps
from trainer.distill import step as judging
from trainer.distill.batch import Batch, StyleBatch, make_batch
from trainer.distill.distiller import Distiller
from trainer.distill.draws import REPLAY, StepDraws
from trainer.distill.losses import StyleLoss, motion_losses, pick_frames
from trainer.distill.points import Points
from trainer.distill.session import Session
from trainer.distill.step import Outcome
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
        self.teacher = load_model(session.config.model).unet.float().to(session.model.device)
        self.empty = session.model.encode_text([""])

    def gradients(self, draws: StepDraws, step: int, share: float) -> Outcome:
        s = self.session
        assert s.discriminator is not None
        s.model._text_cache.clear()  # no text outlives a step
        batch = make_batch(s, draws, step)
        assert batch.style is not None
        earlier = self._start(draws, batch)
        latents = s.model.schedule.add_noise(earlier, batch.noise, batch.t_from)
        prediction = s.student.predict(latents, batch.t_from, batch.text)
        following = self.teacher_step(latents, batch)
        target = s.student.target(following, batch.t_to, batch.text)
        points = Points(latents, batch.t_from, batch.text, target, earlier, batch.anchored)
        motion = motion_losses(prediction, points, s.representation, s.config.recipe.motion)
        style = self._generator_style(prediction, batch.style)
        judged = [(p, p.grad) for p in s.discriminator.parameters()]
        s.discriminator.zero_grad(set_to_none=True)
        ((motion.total + s.config.recipe.adversarial.weight * style.total) * share).backward()
        for parameter, before in judged:  # what the student's loss has put there
            parameter.grad = before
        fake = self._second_look(prediction, batch.style)
        disc = judging.judge(s, batch.style, fake, share)
        logs = {
            "loss": motion.total,
            "consistency": motion.consistency,
            "energy": motion.energy,
            "self_anchor": motion.self_anchor,
            "adversarial": style.adversarial,
            "caption": style.caption,
            "discriminator": disc.total,
        }
        detached = {name: value.detach().float() for name, value in logs.items()}
        return Outcome(detached, prediction.detach(), batch.rows, batch.origins)

    @torch.no_grad()
    def _start(self, draws: StepDraws, batch: Batch) -> Tensor:
        """The clips (B, C, F, h, w) that noise is added to."""
        earlier = self._encode(self.clips[draws.motion].to(batch.noise.device))
        stored = (draws.source == REPLAY).to(batch.noise.device)
        earlier[stored] = batch.earlier[stored]
        if batch.own is not None:
            text = batch.text[batch.own.places]
            earlier[batch.own.places] = self.session.student.generate(batch.own.start, text)
        return earlier

    def _encode(self, clips: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) of all ``clips`` (B, 3, F, H, W), used or not."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        parts = [self.session.model.encode_frames(part) for part in frames.split(ENCODED_AT_ONCE)]
        return torch.cat(parts).unflatten(0, (len(clips), -1)).transpose(1, 2).contiguous()

    @torch.no_grad()
    def teacher_step(self, latents: Tensor, batch: Batch) -> Tensor:
        """One guided DDIM step (B, C, F, h, w) of the separate teacher, in two passes."""
        predict = self.session.model.family.forward
        text, t_from = batch.text.float(), batch.t_from
        empty = self.empty.expand_as(batch.text).float()
        cond = predict(self.teacher, latents, t_from, text).float()
        uncond = predict(self.teacher, latents, t_from, empty).float()
        guided = guided_eps(cond, uncond, batch.guidance)
        schedule = self.session.model.schedule
        x0 = schedule.x0_from_eps(latents, guided, t_from)
        return ddim_step(x0, guided, batch.t_to, schedule)

    def _generator_style(self, prediction: Tensor, batch: StyleBatch) -> StyleLoss:
        """The student's adversarial and caption loss through a discriminator that is not frozen.

        Only its mode is eval: a power iteration of the spectral norm here would make the losses
        differ from ours.
        """
        s = self.session
        assert s.features is not None and s.discriminator is not None
        pixels = s.model.decode_frames(pick_frames(prediction, batch.frames))
        maps = s.features(apply_augment(pixels, batch.augment_fake))
        s.discriminator.eval()
        adversarial = generator_loss(
            s.discriminator(maps, batch.text), s.config.recipe.adversarial.loss
        )
        s.discriminator.train()
        caption = prediction.new_zeros(())
        scores = s.features.score_captions(pixels, batch.captions)
        if s.config.recipe.adversarial.caption_weight and scores is not None:
            caption = scores.mean()
        total = adversarial + s.config.recipe.adversarial.caption_weight * caption
        zero = torch.zeros_like(caption)
        return StyleLoss(total, adversarial, caption, content=zero, statistics=zero, features=())

    @torch.no_grad()
    def _second_look(self, prediction: Tensor, batch: StyleBatch) -> tuple[Tensor, ...]:
        """The same frames decoded and looked at again, for the discriminator's own loss."""
        s = self.session
        assert s.features is not None
        pixels = s.model.decode_frames(pick_frames(prediction.detach(), batch.frames))
        return tuple(s.features(apply_augment(pixels, batch.augment_fake)))

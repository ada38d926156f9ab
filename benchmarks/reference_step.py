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
from trainer.diffusion.solver import ddim_step, ddim_timesteps, guided_eps, previous_timestep
from trainer.distill.distiller import Distiller
from trainer.distill.draws import FRESH, REPLAY, TRAJECTORY, StepDraws
from trainer.distill.losses import StyleLoss, motion_losses, pick_frames
from trainer.distill.points import Points
from trainer.distill.session import Session
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

    def _micro_step(self, draws: StepDraws, step: int, share: float) -> dict[str, Tensor]:
        s = self.session
        assert s.discriminator is not None
        s.model._text_cache.clear()  # no text outlives a step
        with s.accelerator.autocast():
            rows, text, earlier = self._start(draws)
            t_from, t_to = self._timesteps(draws, text.device)
            noise = draws.noise.to(text.device)
            latents = s.model.schedule.add_noise(earlier, noise, t_from)
            prediction = s.student.predict(latents, t_from, text)
            following = self.teacher_step(latents, t_from, t_to, text, draws)
            target = s.student.target(following, t_to, text)
        stored = draws.source == REPLAY
        anchored = (stored & (t_from.cpu() <= s.config.motion.self_anchor_max_timestep)).float()
        points = Points(latents, t_from, text, target, earlier, anchored.to(text.device), rows)
        motion = motion_losses(prediction, points, s.representation, s.config.motion)
        frame_text, captions = self._frame_text(points)
        style = self._generator_style(prediction, draws, frame_text, captions)
        judged = [(p, p.grad) for p in s.discriminator.parameters()]
        s.discriminator.zero_grad(set_to_none=True)
        ((motion.total + s.config.adversarial.weight * style.total) * share).backward()
        for parameter, before in judged:  # what the student's loss has put there
            parameter.grad = before
        fake = self._second_look(prediction, draws, style)
        disc = self._discriminator(draws, fake, frame_text, step, share)
        logs = {
            "loss": motion.total,
            "consistency": motion.consistency,
            "energy": motion.energy,
            "self_anchor": motion.self_anchor,
            "adversarial": style.adversarial,
            "caption": style.caption,
            "discriminator": disc.total,
        }
        return {name: value.detach().float() for name, value in logs.items()}

    @torch.no_grad()
    def _start(self, draws: StepDraws) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt rows (B,), text (B, L, D) and the clips (B, C, F, h, w) that noise is added to."""
        s = self.session
        real, stored, fresh = (draws.source == kind for kind in (TRAJECTORY, REPLAY, FRESH))
        rows = draws.prompt.clone()
        rows[real] = s.motions.prompts[draws.motion[real]]
        rows[stored] = s.replay.prompts[draws.replay[stored]]
        text = s.model.encode_text(s.prompts.texts(rows.tolist()))
        earlier = self._encode(self.clips[draws.motion].to(text.device))
        if stored.any():
            earlier[stored] = s.replay.take(draws.replay[stored])[0].to(earlier)
        if fresh.any():
            earlier[fresh] = s.student.generate(draws.start[fresh].to(text.device), text[fresh])
        return rows, text, earlier

    def _encode(self, clips: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) of all ``clips`` (B, 3, F, H, W), used or not."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        parts = [self.session.model.encode_frames(part) for part in frames.split(ENCODED_AT_ONCE)]
        return torch.cat(parts).unflatten(0, (len(clips), -1)).transpose(1, 2).contiguous()

    def _timesteps(self, draws: StepDraws, device: torch.device) -> tuple[Tensor, Tensor]:
        count = self.session.config.trajectory.ddim_timesteps
        t_from = ddim_timesteps(count)[draws.level]
        return t_from.to(device), previous_timestep(t_from, count).to(device)

    @torch.no_grad()
    def teacher_step(
        self, latents: Tensor, t_from: Tensor, t_to: Tensor, text: Tensor, draws: StepDraws
    ) -> Tensor:
        """One guided DDIM step (B, C, F, h, w) of the separate teacher, in two passes."""
        predict = self.session.model.family.predict_eps
        empty = self.empty.expand_as(text).float()
        cond = predict(self.teacher, latents, t_from, text.float()).float()
        uncond = predict(self.teacher, latents, t_from, empty).float()
        guided = guided_eps(cond, uncond, draws.guidance.to(latents.device))
        schedule = self.session.model.schedule
        return ddim_step(schedule.x0_from_eps(latents, guided, t_from), guided, t_to, schedule)

    def _generator_style(
        self, prediction: Tensor, draws: StepDraws, text: Tensor, captions: list[str]
    ) -> StyleLoss:
        """The student's adversarial and caption loss through a discriminator that is not frozen.

        Only its mode is eval: a power iteration of the spectral norm here would make the losses
        differ from ours.
        """
        s = self.session
        assert s.features is not None and s.discriminator is not None
        pixels = s.model.decode_frames(pick_frames(prediction, draws.frames))
        maps = s.features(apply_augment(pixels, draws.augment_fake))
        s.discriminator.eval()
        adversarial = generator_loss(s.discriminator(maps, text), s.config.adversarial.loss)
        s.discriminator.train()
        caption = prediction.new_zeros(())
        scores = s.features.score_captions(pixels, captions)
        if s.config.adversarial.caption_weight and scores is not None:
            caption = scores.mean()
        total = adversarial + s.config.adversarial.caption_weight * caption
        return StyleLoss(total, adversarial, caption, ())

    @torch.no_grad()
    def _second_look(self, prediction: Tensor, draws: StepDraws, style: StyleLoss) -> StyleLoss:
        """The same frames decoded and looked at again, for the discriminator's own loss."""
        s = self.session
        assert s.features is not None
        pixels = s.model.decode_frames(pick_frames(prediction.detach(), draws.frames))
        maps = s.features(apply_augment(pixels, draws.augment_fake))
        return StyleLoss(style.total, style.adversarial, style.caption, tuple(maps))

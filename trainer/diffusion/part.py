"""A part of a flow, for base models of two networks: one for much noise, one for little.

Let a part run from the level h down to l. Its network's trajectories begin with states at h and end
with states at l; only where l = 0 are those clips. A state at l is a clip x0 with the noise of the
trajectory itself, ``z_l = (1 - l) x0 + l eps``, so two things differ from a whole flow:

* From a point at t, a velocity v leads to ``z_l = z_t - (t - l) v``. With ``x0 = z_t - t v``, what
  the network's output stands for everywhere else, that is ``(l / t) z_t + (1 - l / t) x0``.
* New noise on a state at l keeps the noise that is in it. With ``a = (1 - t) / (1 - l)`` the clip's
  share is right, and the state's own noise has the deviation a l; independent noise adds up by
  squares, so ``z_t = a z_l + sqrt(t^2 - (a l)^2) eps`` has the mixture of level t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .noise import FLOW_STEPS, Flow, check_count, check_steps, simple_shares
from .path import prepare


@dataclass(frozen=True)
class FlowPart(Flow):
    """The part of a flow between the levels ``low`` and ``high``. Its levels, steps and shares are
    counted within it, each as it lies on the whole flow: in n steps of a half it is called at the
    levels that 2 n steps of the whole flow have there.
    """

    low: float = 0.0
    high: float = 1.0

    @property
    def end(self) -> float:
        return self.low

    @property
    def lowest(self) -> float:
        return self.low

    @property
    def in_noise(self) -> bool:
        return self.high >= 1

    @property
    def places(self) -> int:
        return round(FLOW_STEPS * self._length)

    @property
    def config(self) -> dict[str, Any]:
        return {"shift": self.shift, "low": self.low, "high": self.high}

    @property
    def _first(self) -> float:
        """Where it begins, before the shift; with `_last` and `_length` where and how far it goes
        there.
        """
        return self.unshifted(self.high)

    @property
    def _last(self) -> float:
        return self.unshifted(self.low)

    @property
    def _length(self) -> float:
        return self._first - self._last

    def levels(self, count: int) -> Tensor:
        check_count(count)
        return self.shifted(self._last + self._length * torch.arange(1, count + 1) / count)

    def own_steps(self, steps: int) -> int:
        return round(steps * self._length)

    def few_steps(self, steps: int, places: int) -> Tensor:
        """As `NoisePath.few_steps`, of ComfyUI's ``simple`` for the whole flow."""
        whole = round(steps / self._length)
        check_steps(steps, self.own_steps(1000))
        before = round((1 - self._first) * whole)
        return self.shifted(simple_shares(whole)[before : before + steps])

    def share(self, level: Tensor) -> Tensor:
        return (self.unshifted(level) - self._last) / self._length

    def landing(self, z: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        if not self.low:
            return x0
        z, x0, _, t = prepare(self, z, x0, level)
        return self.low / t * z + (1 - self.low / t) * x0

    def aim(self, z: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Not finite at ``low`` itself, from where nothing leads to another state there."""
        if not self.low:
            return state
        z, state, _, t = prepare(self, z, state, level)
        return (t * state - self.low * z) / (t - self.low)

    def renoise(self, state: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        state, eps, alpha, t = prepare(self, state, eps, level)
        kept = alpha / (1 - self.low)
        return kept * state + (t**2 - (kept * self.low) ** 2).clamp(min=0).sqrt() * eps

"""Integration of a rectified flow from noise (t = 1) to an image (t = 0): time grid, solver and guidance."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import widest_float
from alitok.common.errors import BadInput

Solver = Literal["euler", "ab2", "rk4"]
Field = Callable[[Tensor, float, bool], Tensor]


def shifted(t: float, shift: float) -> float:
    """a t / (1 + (a - 1) t): a > 1 moves times toward the noise (D-AR's and SD3's warp)."""
    return shift * t / (1 + (shift - 1) * t)


class FlowSampler(nn.Module):
    """Integrates a flow from noise to an image in `steps` passes, four times as many with RK4.

    It has no weights; it is a module because artifacts are made of modules.

    Args:
        steps: number of steps from t = 1 to t = 0.
        solver: "euler"; "ab2", Adams-Bashforth of order 2 (D-AR); "rk4", Runge-Kutta of order 4.
        power, shift: the times are shifted(((n - i) / n) ^ power, shift) for i = 0 .. n; FlowMo's power is 4.
        guidance: g of v = v_u + g (v_c - v_u), with v_u the velocity without tokens; 1 needs one pass, not two.
        interval: times with guidance (FlowMo: 0.145 to 0.505).
        projected: FlexTok's form of APG (arXiv 2410.02416): the difference gets a momentum of -0.5, is limited to a
            norm of 2.5 per image, and loses its part parallel to v_c.

    Raises:
        BadInput: no steps, an unknown solver, or a power or shift that is not positive.
    """

    def __init__(
        self,
        steps: int = 20,
        solver: Solver = "euler",
        power: float = 1.0,
        shift: float = 1.0,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        projected: bool = False,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise BadInput(f"FlowSampler: a flow takes at least one step, not {steps}.")
        if power <= 0 or shift <= 0:
            raise BadInput(f"FlowSampler: power and shift must be above 0, not {power} and {shift}.")
        if solver not in (known := get_args(Solver)):
            raise BadInput(f"FlowSampler: solver must be {', '.join(known[:-1])} or {known[-1]}, not {solver}.")
        self.steps = steps
        self.solver = solver
        self.power = power
        self.shift = shift
        self.guidance = guidance
        self.interval = interval
        self.projected = projected

    def times(self) -> list[float]:
        """1 = t_0 > ... > t_n = 0."""
        return [shifted(((self.steps - i) / self.steps) ** self.power, self.shift) for i in range(self.steps + 1)]

    def integrate(self, field: Field, noise: Tensor) -> Tensor:
        """Integrate to the image at t = 0.

        Args:
            field: (x_t, t, whether tokens are used) -> velocity, of x_t's shape.
            noise: (B, ...) at t = 1.
        """
        x, running = noise, torch.zeros_like(noise)
        before: tuple[Tensor, float] | None = None

        def velocity(x: Tensor, t: float) -> Tensor:
            nonlocal running
            with_tokens = field(x, t, True)
            if self.guidance == 1 or not self.interval[0] <= t <= self.interval[1]:
                return with_tokens
            difference = with_tokens - field(x, t, False)
            if self.projected:
                running = difference - 0.5 * running
                difference = orthogonal(cut(running, 2.5), with_tokens)
            return with_tokens + (self.guidance - 1) * difference

        for t, following in pairwise(self.times()):
            length = following - t  # negative
            v = velocity(x, t)
            slope = v
            if self.solver == "ab2" and before is not None:  # 1.5 v - 0.5 previous v, if the steps are equal
                slope = v + length / (2 * before[1]) * (v - before[0])
            elif self.solver == "rk4":
                second = velocity(x + length / 2 * v, t + length / 2)
                third = velocity(x + length / 2 * second, t + length / 2)
                slope = (v + 2 * second + 2 * third + velocity(x + length * third, following)) / 6
            x, before = x + length * slope, (v, length)
        return x


def cut(x: Tensor, norm: float) -> Tensor:
    """Scale images (B, ...) so that each has an L2 norm of at most `norm`."""
    return x * (norm / x.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1).view(-1, *[1] * (x.ndim - 1))


def orthogonal(x: Tensor, to: Tensor) -> Tensor:
    """The part of each image of x (B, ...) that is orthogonal to the image of `to`."""
    wide, unit = (y.to(widest_float(x.device)).flatten(1) for y in (x, to))
    unit = F.normalize(unit, dim=1)
    return (wide - (wide * unit).sum(1, keepdim=True) * unit).view_as(x).to(x.dtype)

"""Rectified flow for decoders: one convention, laws of the time, samplers, and noise by seed and image.

At time t = 0 there is the image x, at t = 1 noise e: x_t = (1 - t) x + t e. The velocity is e - x, so x = x_t - t v.
Inside, pixels are (2 image - 1) x scale.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send, widest_float
from alitok.common.errors import BadInput
from alitok.common.random import Step, stream
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models import seams

Solver = Literal["euler", "ab2", "rk4"]
Field = Callable[[Tensor, float, bool], Tensor]


def shifted(t: float, shift: float) -> float:
    """a t / (1 + (a - 1) t): a > 1 moves times toward the noise (D-AR's and SD3's warp)."""
    return shift * t / (1 + (shift - 1) * t)


class TimeLaw(nn.Module):
    """How training draws t: sigmoid of a normal, uniform, or some images this way and some the other.

    It has no weights, and is a module because artifacts are made of modules.

    Args:
        mean, std: of the normal (FlexTok: 0, 1).
        uniform: share of the images whose t is uniform; FlowMo takes 0.1, because without it colors drift.
        shift: see `shifted`; D-AR takes 2, with `uniform` 1.
        stratified: the image at place p of a global batch of B has its quantile in [p / B, (p + 1) / B).
    """

    def __init__(
        self, mean: float = 0.0, std: float = 1.0, uniform: float = 0.0, shift: float = 1.0, stratified: bool = False
    ) -> None:
        super().__init__()
        self.normal = NormalDist(mean, std)
        self.uniform = uniform
        self.shift = shift
        self.stratified = stratified

    def at(self, quantile: float) -> float:
        """t from a number in 0..1, which is uniform in training."""
        quantile = min(max(quantile, 1e-7), 1 - 1e-7)
        if quantile < self.uniform:
            return shifted(quantile / self.uniform, self.shift)
        normal = self.normal.inv_cdf(max((quantile - self.uniform) / (1 - self.uniform), 1e-7))
        return shifted(1 / (1 + math.exp(-normal)), self.shift)

    def draw(self, step: Step) -> Tensor:
        """(B,) float32 on the CPU, one for each image of the micro-batch."""
        numbers = [float(torch.rand((), dtype=torch.float64, generator=step.stream("time", p))) for p in step.places]
        if self.stratified:
            numbers = [(place + number) / step.size for place, number in zip(step.places, numbers, strict=True)]
        return torch.tensor([self.at(number) for number in numbers])


class FlowSampler(nn.Module):
    """How a flow is integrated from noise to an image. A decoding takes `steps` passes, four times as many with RK4.

    It has no weights either.

    Args:
        steps: from t = 1 to t = 0.
        solver: "euler"; "ab2", Adams and Bashforth's of order 2 (D-AR); "rk4", Runge and Kutta's of order 4.
        power, shift: the times are shifted(((n - i) / n) ^ power, shift) for i = 0 .. n; FlowMo's power is 4.
        guidance: g of v = v_u + g (v_c - v_u), with v_u the velocity without tokens; 1 takes one pass in place of two.
        interval: of the times at which there is guidance (FlowMo: 0.145 to 0.505).
        projected: FlexTok's form of APG (arXiv 2410.02416): the difference gets a momentum of -0.5, is cut to a norm of
            2.5 an image, and loses what is parallel to v_c.

    Raises:
        BadInput: no steps, or an unknown solver.
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
        """The image at t = 0.

        Args:
            field: (x_t, t, whether with the tokens) -> velocity, of x_t's shape.
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
            if self.solver == "ab2" and before is not None:  # 1.5 v - 0.5 before, if the steps are equal
                slope = v + length / (2 * before[1]) * (v - before[0])
            elif self.solver == "rk4":
                second = velocity(x + length / 2 * v, t + length / 2)
                third = velocity(x + length / 2 * second, t + length / 2)
                slope = (v + 2 * second + 2 * third + velocity(x + length * third, following)) / 6
            x, before = x + length * slope, (v, length)
        return x


def cut(x: Tensor, norm: float) -> Tensor:
    """Images (B, ...) whose L2 norm is at most `norm`."""
    return x * (norm / x.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1).view(-1, *[1] * (x.ndim - 1))


def orthogonal(x: Tensor, to: Tensor) -> Tensor:
    """What of each image of x (B, ...) is orthogonal to that of `to`."""
    wide, unit = (y.to(widest_float(x.device)).flatten(1) for y in (x, to))
    unit = F.normalize(unit, dim=1)
    return (wide - (wide * unit).sum(1, keepdim=True) * unit).view_as(x).to(x.dtype)


class Flow(seams.Decoder):
    """A decoder that integrates a flow from noise to pixels. A subclass defines `condition` and `velocity`.

    What a training step draws depends on seed, step and place; what `decode` draws on the seed and the image's index.

    Args:
        image_size: height and width of the images in pixels.
        code_dim: D, channels of a latent.
        times: how training draws t.
        sampler: how `decode` integrates.
        scale: of the pixels; noise has deviation 1 (D-AR: 0.6).
        null: share of the images of a training step whose latents become a learned one, for guidance.

    Raises:
        BadInput: guidance without a null.
    """

    generative = True

    def __init__(
        self,
        image_size: int,
        code_dim: int,
        times: TimeLaw | None = None,
        sampler: FlowSampler | None = None,
        scale: float = 1.0,
        null: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.times = times or TimeLaw()
        self.sampler = sampler or FlowSampler()
        self.scale = scale
        self.null = null
        if self.sampler.guidance != 1 and not null:
            raise BadInput("Guidance compares with a flow that sees no tokens: train with null, e.g. 0.1.")
        self.null_latent = nn.Parameter(torch.randn(code_dim) * 0.02) if null else None

    def condition(self, latents: Tensor) -> Any:
        """(B, k, D) -> what `velocity` takes of them, computed once an image."""
        raise NotImplementedError

    def velocity(self, noised: Tensor, t: Tensor, condition: Any) -> Tensor:
        """x_t (B, 3, H, W) and times (B,) -> the velocity (B, 3, H, W)."""
        raise NotImplementedError

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """One time of each image; without images, `decode`.

        Returns:
            "velocity" and "velocity_target" (B, 3, H, W), both divided by `scale`; "time" (B,); "image" (B, 3, H, W),
            the estimate x_t - t v, not clamped.
        """
        if images is None:
            return {"image": self.decode(latents)}
        step = step or Step.alone(len(images))
        t = send(self.times.draw(step), images.device)
        drawn = [torch.randn(images.shape[1:], generator=step.stream("flow", place)) for place in step.places]
        noise, pixels = send(torch.stack(drawn), images.device), self.scale * (2 * images.float() - 1)
        level = t[:, None, None, None]
        noised = (1 - level) * pixels + level * noise
        velocity = self.velocity(noised, t, self.condition(self._dropped(latents, step))).float()
        outputs = {"image": self._image(noised - level * velocity), "time": t}
        return outputs | {"velocity": velocity / self.scale, "velocity_target": (noise - pixels) / self.scale}

    def decode(self, latents: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """(B, k, D) -> (B, 3, H, W) in [0, 1]."""
        given = self.condition(latents)
        without = None if self.null_latent is None else self.condition(self.null_latent.to(latents).expand_as(latents))

        def field(x: Tensor, t: float, with_tokens: bool) -> Tensor:
            times = torch.full((len(x),), t, device=x.device)
            return self.velocity(x, times, given if with_tokens else without).float()

        shape = (3, self.image_size, self.image_size)
        numbers = range(len(latents)) if indices is None else indices
        noise = torch.stack([torch.randn(shape, generator=stream(seed, "flow", int(index))) for index in numbers])
        return self._image(self.sampler.integrate(field, send(noise, latents.device))).clamp(0, 1)

    def _image(self, pixels: Tensor) -> Tensor:
        return (pixels / self.scale + 1) / 2

    def _dropped(self, latents: Tensor, step: Step) -> Tensor:
        if self.null_latent is None or not self.training:
            return latents
        chance = [float(torch.rand((), generator=step.stream("null", place))) for place in step.places]
        without = send(torch.tensor(chance) < self.null, latents.device)
        return torch.where(without[:, None, None], self.null_latent.to(latents.dtype), latents)


class FlowMatching(LossTerm):
    """Mean squared difference of the velocity and its target, in units of the pixels' scale."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.mse_loss(outputs["velocity"].float(), outputs["velocity_target"].float())


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, width): sines and cosines of 1000 t with periods from 2 pi to 512 pi, then Linear, SiLU, Linear."""

    CHANNELS, MOST = 256, 256.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(self.CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.CHANNELS // 2
        frequencies = self.MOST ** (-torch.arange(half, device=t.device) / half)
        angles = 1000 * t.float()[:, None] * frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))

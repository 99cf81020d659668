"""Rectified flow for decoders: time laws, tokens by time, and noise by seed and image.

Time t = 0 is the image x, t = 1 noise e: x_t = (1 - t) x + t e. The velocity is v = e - x, so x = x_t - t v.
Internally, pixels are (2 image - 1) x scale.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step, stream, streams_by_content
from alitok.ideas.shared.flow_sampler import FlowSampler, shifted
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models import seams


class TimeLaw(nn.Module):
    """Draws t in training: sigmoid of a normal number, uniform, or a mixture of both.

    It has no weights; it is a module because artifacts are made of modules.

    Args:
        mean, std: parameters of the normal law (FlexTok: 0, 1).
        uniform: share of the images whose t is uniform; FlowMo has 0.1, because without it colors drift.
        shift: see `shifted`; D-AR has 2, with `uniform` 1.
        stratified: the image at place p of a global batch of B has its quantile in [p / B, (p + 1) / B).

    Raises:
        BadInput: a number outside its range.
    """

    def __init__(
        self, mean: float = 0.0, std: float = 1.0, uniform: float = 0.0, shift: float = 1.0, stratified: bool = False
    ) -> None:
        super().__init__()
        if std <= 0 or shift <= 0 or not 0 <= uniform <= 1:
            raise BadInput(
                f"TimeLaw: std and shift must be above 0 and uniform in 0..1, not {std}, {shift} and {uniform}."
            )
        self.normal = NormalDist(mean, std)
        self.uniform = uniform
        self.shift = shift
        self.stratified = stratified

    def at(self, quantile: float) -> float:
        """t for a number in 0..1, which is uniform in training."""
        quantile = min(max(quantile, 1e-7), 1 - 1e-7)
        if quantile < self.uniform:
            return shifted(quantile / self.uniform, self.shift)
        normal = self.normal.inv_cdf(max((quantile - self.uniform) / (1 - self.uniform), 1e-7))
        return shifted(1 / (1 + math.exp(-normal)), self.shift)

    def draw(self, step: Step) -> Tensor:
        """(B,) float32 on the CPU, one for each image of the micro-batch."""
        numbers = _uniforms(step.stream("time", place) for place in step.places)
        if self.stratified:
            numbers = [(place + number) / step.size for place, number in zip(step.places, numbers, strict=True)]
        return torch.tensor([self.at(number) for number in numbers])

    def draw_for(self, images: Tensor) -> Tensor:
        """(B,) float32 on the CPU; an image's time depends on its pixels alone."""
        return torch.tensor([self.at(number) for number in _uniforms(streams_by_content("time", images))])


def _uniforms(streams: Iterable[torch.Generator]) -> list[float]:
    return [float(torch.rand((), dtype=torch.float64, generator=each)) for each in streams]


class TokenSchedule(nn.Module):
    """Which tokens a flow sees at which time. It has no weights."""

    def visible(self, t: Tensor, total: int) -> Tensor:
        """Times (B,) -> mask (B, total), bool."""
        raise NotImplementedError


class Flow(seams.Decoder):
    """A decoder that integrates a flow from noise to pixels. A subclass defines `condition` and `velocity`.

    Draws in a training step depend on seed, step and place, in validation on the image's pixels, and in `decode` on the
    seed and the image's index.

    Args:
        image_size: height and width of the images in pixels.
        code_dim: D, channels of a latent.
        times: draws t in training.
        sampler: integrates in `decode`.
        scale: scale of the pixels; noise has deviation 1 (D-AR: 0.6).
        null: share of the images in a training step whose latents are replaced by a learned one, for guidance.

    Raises:
        BadInput: guidance without a null, or a share outside 0..1.
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
        if not 0 <= null < 1:
            raise BadInput(f"A flow's null is a share of the images, 0 or more and below 1, not {null}.")
        if self.sampler.guidance != 1 and not null:
            raise BadInput("Guidance compares with a flow that sees no tokens: train with null, e.g. 0.1.")
        self.null_latent = nn.Parameter(torch.randn(code_dim) * 0.02) if null else None

    def condition(self, latents: Tensor) -> Any:
        """(B, k, D) -> the condition for `velocity`, computed once per image."""
        raise NotImplementedError

    def velocity(self, noised: Tensor, t: Tensor, condition: Any) -> Tensor:
        """x_t (B, 3, H, W) and times (B,) -> the velocity (B, 3, H, W)."""
        raise NotImplementedError

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """Compute the velocity at one time per image; without images, `decode`.

        Returns:
            "velocity" and "velocity_target" (B, 3, H, W), both divided by `scale`; "time" (B,); "image" (B, 3, H, W),
            the estimate x_t - t v, not clamped.
        """
        if images is None:
            return {"image": self.decode(latents)}
        if step is None:
            times, streams = self.times.draw_for(images), streams_by_content("flow", images)
        else:
            times, streams = self.times.draw(step), [step.stream("flow", place) for place in step.places]
        t = send(times, images.device)
        drawn = [torch.randn(images.shape[1:], generator=each) for each in streams]
        noise, pixels = send(torch.stack(drawn), images.device), self.scale * (2 * images.float() - 1)
        level = t[:, None, None, None]
        noised = (1 - level) * pixels + level * noise
        velocity = self.velocity(noised, t, self.condition(self._dropped(latents, step))).float()
        outputs = {"image": self._image(noised - level * velocity), "time": t}
        return outputs | {"velocity": velocity / self.scale, "velocity_target": (noise - pixels) / self.scale}

    def decode(self, latents: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """(B, k, D) -> (B, 3, H, W) in [0, 1]."""
        given = self.condition(latents)
        without = None
        if self.null_latent is not None and self.sampler.guidance != 1:
            without = self.condition(self.null_latent.to(latents).expand_as(latents))

        def field(x: Tensor, t: float, with_tokens: bool) -> Tensor:
            times = torch.full((len(x),), t, device=x.device)
            return self.velocity(x, times, given if with_tokens else without).float()

        shape = (3, self.image_size, self.image_size)
        numbers = range(len(latents)) if indices is None else indices
        noise = torch.stack([torch.randn(shape, generator=stream(seed, "flow", int(index))) for index in numbers])
        return self._image(self.sampler.integrate(field, send(noise, latents.device))).clamp(0, 1)

    def _image(self, pixels: Tensor) -> Tensor:
        return (pixels / self.scale + 1) / 2

    def _dropped(self, latents: Tensor, step: Step | None) -> Tensor:
        if self.null_latent is None or step is None or not self.training:
            return latents
        chance = [float(torch.rand((), generator=step.stream("null", place))) for place in step.places]
        without = send(torch.tensor(chance) < self.null, latents.device)
        return torch.where(without[:, None, None], self.null_latent.to(latents.dtype), latents)


class FlowMatching(LossTerm):
    """Mean squared error of the velocity, in units of the pixels' scale."""

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

"""The seams: what each part of a model gives and gets. An idea subclasses one of these classes.

Shapes: B images, N tokens an image, D channels of a latent, V codes, S sub-codes of a token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import widest_float
from alitok.common.random import Step, stream

Guide = Callable[[Tensor], Tensor]


class Part(nn.Module):
    """A part of a model. It says what it can do by class attributes, so nobody has to ask.

    Attributes:
        entries: methods besides `forward` that a training step calls; a sharding strategy gathers the weights for them.
    """

    entries: tuple[str, ...] = ()

    def setup(self, device: torch.device) -> None:
        """Reads what the part needs from files, once, at the start of a fresh run. Constructors read no file."""
        return


@dataclass(kw_only=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
        latents: (B, N, D) float32, what was quantized: normed or bounded if the quantizer does that first.
        quantized: (B, N, D) float32, with the straight-through gradient to the latents. None if the phase of training
            does not quantize.
        ids: (B, N) int64, or (B, N, S) if a token has S > 1 sub-codes.
        losses: scalars by name, weighted.
        statistics: what `Quantizer.update` needs, in training: a dataclass of tensors with `merge`, or None.
        extra: what a loss term may ask for besides, by name, e.g. distances to the codes. It joins the outputs.
    """

    latents: Tensor
    quantized: Tensor | None
    ids: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def decodable(self) -> Tensor:
        """(B, N, D), what the decoder gets if no bottleneck is in between."""
        return self.latents if self.quantized is None else self.quantized


@dataclass(kw_only=True)
class Decoding:
    """One sequence of latents that a training step decodes. The step sums the losses of all decodings.

    Attributes:
        latents: (B, k, D) for the decoder.
        weight: of this decoding's losses.
        outputs: what joins the decoder's outputs, by name.
    """

    latents: Tensor
    weight: float = 1.0
    outputs: dict[str, Any] = field(default_factory=dict)


class Encoder(Part):
    """Images to latents.

    Attributes:
        image_size: height and width of the images in pixels.
        num_latents: N, prefix tokens included.
    """

    image_size: int
    num_latents: int

    def forward(self, images: Tensor, step: Step | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, D). `step` is None outside training."""
        raise NotImplementedError


class Quantizer(Part):
    """Latents to ids and back.

    Attributes:
        codebook_size: V, codes of a token, or of one of its sub-codes.
        sub_codes: S, ids of a token.
    """

    codebook_size: int
    sub_codes: int = 1

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) float32 -> `Quantized`. It changes no state: `update` does. `step` is None outside training."""
        raise NotImplementedError

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> ids alone. Override it if `forward` costs much more than the ids."""
        ids: Tensor = self(latents).ids
        return ids

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N), or (B, N, S) if S > 1, -> (B, N, D) float32 for the decoder."""
        raise NotImplementedError

    def update(self, statistics: Any) -> None:
        """Applies the statistics of one global batch, merged over micro-batches and processes."""
        return

    def fit(self, batches: Iterator[Tensor]) -> None:
        """Sets the codes by latents of the encoder as it is, at the start of a phase with `fit: N`.

        Args:
            batches: latents (B, N, D) float32 of that many global batches, the same on every process.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be fitted: take `fit` out of the phases.")


class Bottleneck(Part):
    """What happens to tokens between quantizer and decoder, in training only.

    Attributes:
        shortens: it may give the decoder fewer than N latents; the decoder must then be of `any_length`.
        any_length: `complete` makes the first k tokens decodable.
    """

    shortens = False
    any_length = False

    def check(self, quantizer: Quantizer) -> None:
        """Raises BadInput if it cannot work with the quantizer."""
        return

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """What to decode: one or more sequences."""
        raise NotImplementedError

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """The first latents (B, k, D) of `total` -> what the decoder gets if the others are not there."""
        raise NotImplementedError


class Decoder(Part):
    """Latents to images.

    Attributes:
        any_length: it takes the first k latents, for any k.
        num_latents: N that it takes; None for any.
        length: of its longest sequence inside, for estimates of memory; None for N.
        generative: `decode` draws or integrates, so an image of `forward` is no reconstruction.
    """

    any_length = False
    num_latents: int | None = None
    length: int | None = None
    generative = False

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """Outputs by name for the loss terms.

        Args:
            latents: (B, k, D).
            images: (B, 3, H, W) in [0, 1], the targets, if there are any.
            step: of training; None elsewhere.

        Returns:
            "image" (B, 3, H, W), and what else loss terms ask for.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """(B, k, D) -> (B, 3, H, W). What is random depends on the seed and each image's index alone."""
        image: Tensor = self(latents)["image"]
        return image

    def at_image(self, hidden: Tensor) -> Tensor:
        """What a block inside puts out (B, length, width) -> that of the patches (B, H * W, width), row by row."""
        raise NotImplementedError(f"{type(self).__name__} does not define which places of its blocks are patches.")


class Head:
    """How a generator's hidden state becomes a token; mixed into the module at `Generator.output`.

    This default is the categorical head: calling the module gives logits (..., V), or (..., S, V).

    Attributes:
        has_logits: calling the module gives those logits, so that accuracy can be measured.
        noise_shape: of the uniform numbers that draw one token.
    """

    has_logits = True
    noise_shape: tuple[int, ...] = ()

    def loss(self, hidden: Tensor, ids: Tensor, step: Step | None = None) -> dict[str, Tensor]:
        """hidden (B, N, width), ids (B, N) or (B, N, S) -> "nats" (B, N) float32, not reduced, and "logits" if any.

        With sub-codes "nats" is the mean over them.
        """
        logits = self(hidden).float()  # type: ignore[operator]
        nats = F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)
        return {"nats": nats if nats.ndim == 2 else nats.mean(-1), "logits": logits}

    def draw(self, hidden: Tensor, noise: Tensor, guide: Guide, temperature: float) -> Tensor:
        """Draws one token an image. Nothing here waits for the device.

        Args:
            hidden: (rows, width), one row for each branch of guidance and image.
            noise: (B, *noise_shape) uniform numbers.
            guide: combines the branches: logits (rows, ...) -> (B, ...).

        Returns:
            ids (B,) or (B, S).
        """
        return draw(guide(self(hidden).float()) / temperature, noise)  # type: ignore[operator]


class Corruption:
    """Changes the tokens that a generator reads in training; its targets stay as they are."""

    def __call__(self, inputs: Tensor, codebook_size: int, step: Step) -> Tensor:
        """ids (B, N) or (B, N, S) -> ids of the same shape."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Ordering:
    """In which order a generator writes the tokens of each image in a training step.

    Attributes:
        places: (B, N) int64, a permutation of 0..N-1 for each image: places[b, i] is written at step i.
        weights: (B, N) float32 of the losses by step, or None for 1 everywhere.
    """

    places: Tensor
    weights: Tensor | None = None


class Order:
    """Chooses the order of each image of a training step."""

    def __call__(self, tokens: int, prefix: int, step: Step) -> Ordering:
        """The orders of the step's images.

        Args:
            tokens: N, tokens of an image.
            prefix: K, those in front of the grid.
        """
        raise NotImplementedError


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws from softmax(logits) by inverting its cumulative distribution.

    Args:
        logits: (B, V), or (B, S, V).
        uniform: (B,) or (B, S) in [0, 1): one random number for each id.

    Returns:
        (B,) or (B, S) int64.
    """
    cumulative = logits.to(widest_float(logits.device)).softmax(-1).cumsum(-1)
    target = uniform.to(cumulative)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)


def image_uniforms(seed: int, indices: Sequence[int], *shape: int) -> Tensor:
    """(B, *shape) float64 uniform numbers, row b a function of the seed and the image's index alone."""
    return torch.stack(
        [torch.rand(shape, dtype=torch.float64, generator=stream(seed, "image", int(index))) for index in indices]
    )

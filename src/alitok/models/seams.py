"""The seams: base classes that define the inputs and outputs of a model's parts. An idea subclasses one of them.

Others are `losses.terms.LossTerm`, `losses.adversarial.AdversarialLoss`, `sampling.guidance.Guidance` and
`sampling.reveal.Reveal`.

Shapes: B images, N tokens per image (k of them in a shorter sequence), D channels of a latent, V codes, S sub-codes of
a token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import widest_float
from alitok.common.random import Step, derive_seed, open_uniforms, splitmix, stream

Guide = Callable[[Tensor], Tensor]


class Part(nn.Module):
    """A part of a model. Class attributes state what it can do.

    Attributes:
        entries: methods besides `forward` that a training step calls; a sharding strategy gathers the weights for them.
    """

    entries: tuple[str, ...] = ()

    def setup(self, device: torch.device) -> None:
        """Reads the part's files, once, at the start of a new run. Constructors read no files."""
        return


@dataclass(kw_only=True)
class Quantized:
    """What a quantizer returns for latents.

    Attributes:
        latents: (B, N, D) float32, the quantizer's inputs, after its norm or bound if it has one.
        quantized: (B, N, D) float32, with the straight-through gradient to the latents. None if the phase of training
            does not quantize.
        ids: (B, N) int64, or (B, N, S) if a token has S > 1 sub-codes.
        losses: weighted scalars by name. The term `losses.terms.QuantizerLoss` adds them to the loss.
        statistics: the argument of `Quantizer.update`, a dataclass of tensors; `a.merge(b)` joins two. None in eval
            mode, so that a frozen quantizer does not change.
        extra: more outputs for loss terms, by name, e.g. distances to the codes.
    """

    latents: Tensor
    quantized: Tensor | None
    ids: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def decodable(self) -> Tensor:
        """(B, N, D), the decoder's input if there is no bottleneck."""
        return self.latents if self.quantized is None else self.quantized


@dataclass(kw_only=True)
class Decoding:
    """One sequence of latents that a training step decodes.

    The step sums the weighted loss terms of all decodings. The adversarial loss sees only the first one.

    Attributes:
        latents: (B, k, D) for the decoder.
        weight: weight of this decoding's losses.
        outputs: added to the decoder's outputs, by name.
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
        """(B, 3, H, W) in [0, 1] -> (B, N, D). `step` is None outside training; a frozen part gets it, in eval mode."""
        raise NotImplementedError


class Quantizer(Part):
    """Latents to ids and back.

    Attributes:
        codebook_size: V, possible values of an id.
        sub_codes: S, ids per token.
        nearest: an id is that of the code nearest to the latent by squared L2 distance.
    """

    codebook_size: int
    sub_codes: int = 1
    nearest: bool = True

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) float32 -> `Quantized`. Only `update` changes state. Switch autocast off inside.

        `step` is None outside training; a frozen part gets it, in eval mode.
        """
        raise NotImplementedError

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> only the ids. Override it if `forward` costs much more than the ids."""
        ids: Tensor = self(latents).ids
        return ids

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N), or (B, N, S) if S > 1, -> (B, N, D) float32 for the decoder."""
        raise NotImplementedError

    def update(self, statistics: Any) -> None:
        """Applies the statistics of one global batch, merged over micro-batches and processes."""
        return

    def fit(self, batches: Iterator[Tensor]) -> None:
        """Sets the codes from the encoder's present latents, at the start of a phase with `fit: COUNT`.

        Args:
            batches: latents (B, N, D) float32 of COUNT global batches, the same on every process.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be fitted: take `fit` out of the phases.")


class Bottleneck(Part):
    """Changes the tokens between quantizer and decoder, in training only.

    Attributes:
        shortens: it may give the decoder fewer than N latents; the decoder then needs `any_length`.
        any_length: `complete` makes the first k tokens decodable, for any k.
    """

    shortens = False
    any_length = False

    def check(self, quantizer: Quantizer) -> None:
        """Raises BadInput if the bottleneck cannot work with the quantizer."""
        return

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """The sequences to decode, at least one."""
        raise NotImplementedError

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """The first k of `total` latents (B, k, D) -> the decoder's input if the others are absent."""
        raise NotImplementedError


class Decoder(Part):
    """Latents to images.

    Attributes:
        any_length: it decodes the first k latents, for any k. Bottlenecks that shorten need it. To decode the first k
            ids, `Bottleneck.complete` is needed too.
        num_latents: the N that it takes; None for any.
        length: length of its longest inner sequence, for estimates of memory; None for N.
        generative: `decode` draws or integrates; the image of `forward` is not a reconstruction.
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
            step: step of training; None elsewhere.

        Returns:
            "image" (B, 3, H, W), and other outputs that loss terms need.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """(B, k, D) -> (B, 3, H, W) in [0, 1]. Random numbers depend only on the seed and the image's index."""
        image: Tensor = self(latents)["image"]
        return image

    def at_image(self, hidden: Tensor) -> Tensor:
        """Selects the image's patches from a block's output: (B, length, width) -> (B, rows * columns, width)."""
        raise NotImplementedError(f"{type(self).__name__} does not define which places of its blocks are patches.")


class Head:
    """Turns a generator's hidden state into a token. A mixin of the module at `Generator.output`.

    This default is the categorical head: calling the module gives logits (..., V), or (..., S, V).

    Attributes:
        has_logits: calling the module gives those logits, so that accuracy can be measured.
        noise_shape: shape of the uniform numbers that draw one token.
        draws_once: `draw` asks for the logits of each symbol once, so that a token has one probability.
    """

    has_logits = True
    draws_once = True
    noise_shape: tuple[int, ...] = ()

    def loss(self, hidden: Tensor, ids: Tensor, step: Step | None = None) -> dict[str, Tensor]:
        """hidden (B, N, width), ids (B, N) or (B, N, S) -> "nats" (B, N) float32, and "logits" if the head has any.

        With sub-codes "nats" is the mean over them.
        """
        logits = self(hidden).float()  # type: ignore[operator]
        nats = F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)
        return {"nats": nats if nats.ndim == 2 else nats.mean(-1), "logits": logits}

    def draw(self, hidden: Tensor, noise: Tensor, guide: Guide, temperature: float) -> Tensor:
        """Draws one token per image. Nothing here waits for the device.

        Args:
            hidden: (rows, width), a row for each pair of guidance branch and image.
            noise: (B, *noise_shape) uniform numbers, or int64 keys of Gumbel numbers; see the function `draw`.
            guide: combines the branches: logits (rows, ...) -> (B, ...).

        Returns:
            ids (B,) or (B, S).
        """
        return draw(guide(self(hidden).float()) / temperature, noise)  # type: ignore[operator]


class Corruption:
    """Changes the tokens that a generator reads in training, but not its targets."""

    def __call__(self, inputs: Tensor, codebook_size: int, step: Step) -> Tensor:
        """ids (B, N) or (B, N, S) -> ids of the same shape."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Ordering:
    """The order in which a generator writes the tokens of each image in a training step.

    Attributes:
        places: (B, N) int64, a permutation of 0..N-1 for each image: places[b, i] is the place that is written i-th.
        weights: (B, N) float32, weights of the losses in that order; None for 1 everywhere.
    """

    places: Tensor
    weights: Tensor | None = None


class Order:
    """Chooses the order of each image of a training step."""

    def __call__(self, tokens: int, prefix: int, step: Step) -> Ordering:
        """The orders of the step's images.

        Args:
            tokens: N, tokens of an image.
            prefix: K, prefix tokens before the square token grid.
        """
        raise NotImplementedError


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draws from softmax(logits).

    Args:
        logits: (B, V), or (B, S, V).
        noise: (B,) or (B, S), one number per id. A uniform number in [0, 1) inverts the cumulative distribution. An
            int64 key gives each code a Gumbel number; the code with the largest sum of logit and number is drawn.

    Returns:
        (B,) or (B, S) int64.
    """
    if noise.dtype == torch.int64:
        return (logits.to(widest_float(logits.device)) + gumbel(noise, logits.shape[-1])).argmax(-1)
    cumulative = logits.to(widest_float(logits.device)).softmax(-1).cumsum(-1)
    target = noise.to(cumulative)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)


def image_uniforms(seed: int, indices: Sequence[int], *shape: int) -> Tensor:
    """(B, *shape) float64 uniform numbers. Row b depends only on the seed and indices[b]."""
    return torch.stack(
        [torch.rand(shape, dtype=torch.float64, generator=stream(seed, "image", int(index))) for index in indices]
    )


def image_keys(seed: int, indices: Sequence[int], *shape: int) -> Tensor:
    """(B, *shape) int64 keys for `gumbel`. Row b depends only on the seed and indices[b]."""
    keys = torch.tensor([derive_seed(seed, "gumbel", int(index)) for index in indices], dtype=torch.int64)
    return splitmix(keys, torch.Size(shape).numel()).view(-1, *shape)


def gumbel(keys: Tensor, codes: int) -> Tensor:
    """Gumbel numbers (..., V) for keys (...), on the keys' device. Each depends only on its key and code."""
    return -(-open_uniforms(splitmix(keys, codes), widest_float(keys.device)).log()).log()

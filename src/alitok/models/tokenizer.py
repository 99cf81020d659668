"""The tokenizer: encoder, quantizer, an optional bottleneck, decoder."""

from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput


class Tokenizer(nn.Module):
    """Images <-> token ids, of parts that are each chosen by `class_path`.

    Args:
        encoder: images (B, 3, H, W) -> latents (B, N, D).
        quantizer: latents -> `QuantizerOutput`; has `lookup`, `codebook_size` and, where it learns online, `update`.
            `begin_step` as a bottleneck's.
        decoder: latents -> {"image": (B, 3, H, W), ...}.
        bottleneck: called in training only, between quantizer and decoder, as
            `bottleneck(quantized, latents, ids, quantizer)` -> quantized latents. A phase that does not quantize has no
            ids: they are None, and `quantized` is `latents`. Where its `complete(prefix, N)`
            makes of the first latents (B, k, D) what the decoder is to get, ids (B, k) decode as well. One that
            `shortens` the sequence needs a decoder of `any_length`. Where it has `begin_step(seed, step, steps, first,
            size)`, that is called before each micro-batch: `step` of `steps`, whose first image is the one at place
            `first` of a global batch of `size`. Where it has `check(quantizer)`, that raises BadInput if they do not
            go together.

    Raises:
        BadInput: the bottleneck shortens the sequence and the decoder needs all of it, or does not suit the quantizer.
        ValueError: the decoder says that it takes another number of latents than the encoder gives.
    """

    encoder: Any  # the parts are whatever module has the methods above
    quantizer: Any
    bottleneck: Any
    decoder: Any
    block: dict[str, Any]  # class block and card of the artifact that it was read from
    card: dict[str, Any]

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: nn.Module,
        decoder: nn.Module,
        bottleneck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if getattr(bottleneck, "shortens", False) and not getattr(decoder, "any_length", False):
            raise BadInput(
                f"{type(bottleneck).__name__} hands on fewer tokens and {type(decoder).__name__} needs all of them;"
                " take alitok.models.titok.TiTokDecoder, or alitok.models.nested_dropout.NestedDropout, which masks."
            )
        if hasattr(bottleneck, "check"):
            bottleneck.check(quantizer)  # type: ignore[operator,union-attr]
        gives, takes = getattr(encoder, "num_latents", None), getattr(decoder, "num_latents", None)
        if None not in (gives, takes) and gives != takes:
            raise ValueError(f"the encoder gives num_latents {gives}, the decoder takes prefix and patches, {takes}")
        self.encoder = encoder
        self.quantizer = quantizer
        self.bottleneck = bottleneck
        self.decoder = decoder

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.quantizer.codebook_size

    @property
    def sub_codes(self) -> int | None:
        """S, where a token has several ids."""
        return getattr(self.quantizer, "sub_codes", None)

    @property
    def num_tokens(self) -> int:
        """N, tokens of an image."""
        return self.encoder.num_latents

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.encoder.image_size

    @property
    def any_length(self) -> bool:
        """Whether the first k tokens of an image decode, for every k in 1..N."""
        return hasattr(self.bottleneck, "complete")

    def forward(self, images: Tensor, quantize: bool = True, ids: Tensor | None = None) -> dict[str, Any]:
        """What losses and metrics depend on, by name.

        Args:
            images: (B, 3, H, W) in [0, 1].
            quantize: False gives the decoder the latents themselves.
            ids: as `decode` takes them, decoded in place of the images' own (through the bottleneck in training);
                there are then no latents and no quantizer losses.

        Returns:
            "image" (B, 3, H, W) and whatever else the decoder gives, "latents" (B, N, D), "ids" (B, N),
            "quantizer_losses" (scalars by name) and "statistics" (what the quantizer's update needs, or None).
        """
        if ids is not None:
            given = self._lookup(ids)
            decoded = self.decoder(self._narrow(given, given, ids))
            return {**decoded, "ids": ids, "quantizer_losses": {}, "statistics": None}
        quantizer_output = self.quantizer(self.encoder(images).float())
        latents = quantizer_output.latents
        quantized = quantizer_output.quantized if quantize else latents
        return {
            **self.decoder(self._narrow(quantized, latents, quantizer_output.ids if quantize else None)),
            "latents": latents,
            "ids": quantizer_output.ids,
            "quantizer_losses": quantizer_output.losses,
            "statistics": quantizer_output.statistics,
        }

    def _narrow(self, quantized: Tensor, latents: Tensor, ids: Tensor | None) -> Tensor:
        """What the bottleneck makes of what the decoder is to get; in training only."""
        if self.bottleneck is None or not self.training:
            return quantized
        narrowed = self.bottleneck(quantized, latents, ids, self.quantizer)
        if narrowed.shape != quantized.shape and not getattr(self.bottleneck, "shortens", False):
            raise ValueError(
                f"{type(self.bottleneck).__name__} made {tuple(narrowed.shape)} of {tuple(quantized.shape)}: it must"
                " keep the shape, or say that it `shortens` the sequence."
            )
        return narrowed

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, D) float32, before quantization."""
        return self.encoder(images).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ids (B, N) int64."""
        return self.ids_of(self.encode_latents(images))

    @torch.no_grad()
    def ids_of(self, latents: Tensor) -> Tensor:
        """Latents (B, N, D) of `encode_latents` -> ids (B, N) or (B, N, S)."""
        # a quantizer whose losses cost more than its ids gives these alone
        return self.quantizer.ids(latents) if hasattr(self.quantizer, "ids") else self.quantizer(latents).ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N), or the first k of them (B, k) -> (B, 3, H, W) float32 in [0, 1].

        Raises:
            BadInput: fewer than N ids where only all of them decode, more than N, or none.
        """
        return self.decoder(self._lookup(ids))["image"].float()

    def check_length(self, count: int) -> None:
        """Whether the first `count` tokens of an image decode.

        Raises:
            BadInput: they do not.
        """
        total = self.num_tokens
        if not 1 <= count <= total:
            raise BadInput(f"An image has 1 to {total} tokens for this tokenizer, not {count}.")
        if count < total and not self.any_length:
            raise BadInput(
                f"This tokenizer decodes all {total} tokens, not the first {count}: train one with a bottleneck that"
                " drops the tail (experiments/ideas/tail-drop.yaml or nested-dropout.yaml)."
            )

    def _lookup(self, ids: Tensor) -> Tensor:
        """What the decoder gets of ids."""
        self.check_length(ids.shape[1])
        latents = self.quantizer.lookup(ids)
        return latents if ids.shape[1] == self.num_tokens else self.bottleneck.complete(latents, self.num_tokens)

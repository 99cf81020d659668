"""The tokenizer: encoder, quantizer, an optional bottleneck, decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Bottleneck, Decoder, Encoder, Part, Quantized, Quantizer


class Tokenizer(Part):
    """Images <-> token ids. Each part is chosen by `class_path` (see `alitok.models.seams`).

    Args:
        encoder: images (B, 3, H, W) -> latents (B, N, D).
        quantizer: latents <-> ids.
        decoder: latents -> {"image": (B, 3, H, W), ...}.
        bottleneck: changes the tokens before the decoder, in training.

    Raises:
        BadInput: a part does not subclass its seam, or two parts do not fit together.
        ValueError: encoder and decoder differ in the number of latents.
    """

    entries = ("decode", "encode_latents")  # validation with a generative decoder, and phases with `fit`
    # nn.Module's attributes are typed as modules
    encoder: Encoder
    quantizer: Quantizer
    bottleneck: Bottleneck | None
    decoder: Decoder
    block: dict[str, Any]  # block and card are those of the artifact that it was read from
    card: Mapping[str, Any] = {}

    def __init__(
        self,
        encoder: Encoder,
        quantizer: Quantizer,
        decoder: Decoder,
        bottleneck: Bottleneck | None = None,
    ) -> None:
        super().__init__()
        check_seam("encoder", encoder, Encoder)
        check_seam("quantizer", quantizer, Quantizer)
        check_seam("decoder", decoder, Decoder)
        if bottleneck is not None:
            check_seam("bottleneck", bottleneck, Bottleneck)
            if bottleneck.shortens and not decoder.any_length:
                raise BadInput(
                    f"{type(bottleneck).__name__} hands on fewer tokens and {type(decoder).__name__} needs all of them;"
                    " take a decoder of `any_length`, or a bottleneck that does not shorten the sequence."
                )
            bottleneck.check(quantizer)
        if decoder.num_latents not in (None, encoder.num_latents):
            raise ValueError(
                f"the encoder gives num_latents {encoder.num_latents}, the decoder takes prefix and patches,"
                f" {decoder.num_latents}"
            )
        self.encoder = encoder
        self.quantizer = quantizer
        self.bottleneck = bottleneck
        self.decoder = decoder

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.quantizer.codebook_size

    @property
    def sub_codes(self) -> int:
        """S, ids per token."""
        return self.quantizer.sub_codes

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
        return self.bottleneck is not None and self.bottleneck.any_length

    def forward(
        self, images: Tensor, quantize: bool = True, ids: Tensor | None = None, step: Step | None = None
    ) -> dict[str, Any]:
        """The outputs that losses and metrics read, by name.

        Args:
            images: (B, 3, H, W) in [0, 1].
            quantize: False gives the decoder the latents themselves.
            ids: decoded instead of the images' own ids (through the bottleneck in training); there are then no latents
                and no quantizer losses. Shapes as for `decode`.
            step: step of training; None elsewhere. If it is None in training mode, these images are the global batch.

        Returns:
            "image" (B, 3, H, W) and the decoder's other outputs, "latents" (B, N, D), "ids" (B, N) or (B, N, S),
            "quantizer_losses" (scalars by name) and "statistics" (for `Quantizer.update`, or None). With a bottleneck
            in training, these are the first decoding's, and "decodings" lists (weight, outputs) of each.
        """
        if self.training and step is None:
            step = Step.alone(len(images))
        if ids is not None:
            given = self._lookup(ids)
            tokens = Quantized(latents=given, quantized=given, ids=ids)
            shared: dict[str, Any] = {}
        else:
            tokens = cast(Quantized, self.quantizer(self.encoder(images, step).float(), step))
            shared = {"latents": tokens.latents}
            if not quantize:
                tokens = replace(tokens, quantized=None)
        shared |= {"ids": tokens.ids, "quantizer_losses": tokens.losses, "statistics": tokens.statistics}
        shared |= tokens.extra
        if self.bottleneck is None or step is None or not self.training:
            return {**self.decoder(tokens.decodable, images, step), **shared}
        decodings = []
        for decoding in self.bottleneck(tokens, self.quantizer, step):
            if decoding.latents.shape != tokens.decodable.shape and not self.bottleneck.shortens:
                raise ValueError(
                    f"{type(self.bottleneck).__name__} made {tuple(decoding.latents.shape)} of"
                    f" {tuple(tokens.decodable.shape)}: it must keep the shape, or say that it `shortens` the sequence."
                )
            outputs = {**self.decoder(decoding.latents, images, step), **decoding.outputs, **shared}
            decodings.append((decoding.weight, outputs))
        return {**decodings[0][1], "decodings": decodings}

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, D) float32, before quantization."""
        return self.encoder(images).float()

    @torch.no_grad()
    @float32_products(tf32=False)  # as in a token cache: rounded factors would change some ids
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ids (B, N) int64, or (B, N, S)."""
        return self.ids_of(self.encode_latents(images))

    @torch.no_grad()
    def ids_of(self, latents: Tensor) -> Tensor:
        """Latents (B, N, D) of `encode_latents` -> ids (B, N) or (B, N, S)."""
        return self.quantizer.ids(latents)

    @torch.no_grad()
    def decode(self, ids: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """ids (B, N), or the first k of them (B, k), or either with S sub-codes -> (B, 3, H, W) float32 in [0, 1].

        Args:
            seed, indices: seed and the images' indices (default 0..B-1) decide the draws of a generative decoder.

        Raises:
            BadInput: no ids, more than N, or fewer than N without `any_length`.
        """
        return self.decoder.decode(self._lookup(ids), seed, indices).float()

    def reconstruct(self, images: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """Encodes and decodes images (B, 3, H, W) in [0, 1]; seed and indices as for `decode`."""
        return self.decode(self.encode(images), seed, indices)

    def check_length(self, count: int) -> None:
        """Checks that the first `count` tokens of an image can be decoded.

        Raises:
            BadInput: they cannot.
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
        """The decoder's input for ids."""
        self.check_length(ids.shape[1])
        latents = self.quantizer.lookup(ids)
        if self.bottleneck is None or ids.shape[1] == self.num_tokens:
            return latents
        return self.bottleneck.complete(latents, self.num_tokens)


def check_seam(role: str, part: Any, seam: type[Part]) -> None:
    """Raises BadInput unless the part subclasses its seam."""
    if not isinstance(part, seam):
        raise BadInput(f"{type(part).__name__} is no {role}: it must subclass alitok.models.seams.{seam.__name__}.")

"""The tokenizer: encoder, quantizer, an optional bottleneck, decoder."""

from typing import Any

import torch
from torch import Tensor, nn


class Tokenizer(nn.Module):
    """Images <-> token ids, of parts that are each chosen by `class_path`.

    Args:
        encoder: images (B, 3, H, W) -> latents (B, N, D).
        quantizer: latents -> `QuantizerOutput`; has `lookup`, `codebook_size` and, where it learns online, `update`.
        decoder: latents -> {"image": (B, 3, H, W), ...}.
        bottleneck: called in training only, between quantizer and decoder, as
            `bottleneck(quantized, latents, ids, quantizer)` -> quantized latents.

    Raises:
        ValueError: the decoder says that it takes another number of latents than the encoder gives.
    """

    encoder: Any  # the parts are whatever module has the methods above
    quantizer: Any
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
    def num_tokens(self) -> int:
        """N, tokens of an image."""
        return self.encoder.num_latents

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.encoder.image_size

    def forward(self, images: Tensor, quantize: bool = True) -> dict[str, Any]:
        """What losses and metrics depend on, by name.

        Args:
            images: (B, 3, H, W) in [0, 1].
            quantize: False gives the decoder the latents themselves.

        Returns:
            "image" (B, 3, H, W) and whatever else the decoder gives, "latents" (B, N, D), "ids" (B, N),
            "quantizer_losses" (scalars by name) and "statistics" (what the quantizer's update needs, or None).
        """
        latents = self.encoder(images).float()
        quantizer_output = self.quantizer(latents)
        quantized = quantizer_output.quantized if quantize else latents
        if self.bottleneck is not None and self.training:
            quantized = self.bottleneck(quantized, latents, quantizer_output.ids, self.quantizer)
        return {
            **self.decoder(quantized),
            "latents": latents,
            "ids": quantizer_output.ids,
            "quantizer_losses": quantizer_output.losses,
            "statistics": quantizer_output.statistics,
        }

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, D) float32, before quantization."""
        return self.encoder(images).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ids (B, N) int64."""
        return self.quantizer(self.encode_latents(images)).ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> (B, 3, H, W) float32 in [0, 1]."""
        return self.decoder(self.quantizer.lookup(ids))["image"].float()

"""What a loss term is: (batch, outputs) -> scalar, in float32."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alitok.common.errors import BadInput

Batch = Mapping[str, Any]
Outputs = Mapping[str, Any]


class LossTerm:
    """One term of a loss; named by `class_path` in a configuration.

    A subclass writes `compute`, which runs with autocast off and must turn its inputs into float32. A term is not an
    `nn.Module`, so a module that holds one gets no parameters, buffers or checkpoint entries from it. Its constructor
    touches no file and no device.
    """

    def check(self) -> None:
        """Looks whether the files that `setup` will read are there; reads none.

        Raises:
            BadInput: a file is missing.
        """
        return

    def setup(self, device: torch.device | str) -> None:
        """Loads what the term needs onto `device`; called once, before the first batch."""
        return

    def __call__(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The term's value, a float32 scalar, whatever autocast is active outside.

        Args:
            batch: `image` (B, 3, H, W) in [0, 1], the target.
            outputs: by name, what the tokenizer gives: `image` (B, 3, H, W); `prefix` (B, 3, p, p K) from decoders
                with a prefix head; `latents` (B, N, D) and `ids` (B, N) or (B, N, S); `quantizer_losses`, scalars by
                name; `statistics` for the quantizer's update.

        Raises:
            BadInput: an output that the term needs is absent or does not fit the batch.
            ValueError: the term is no scalar.
        """
        name = type(self).__name__
        with torch.autocast(batch["image"].device.type, enabled=False):
            try:
                value = self.compute(batch, outputs)
            except KeyError as error:
                if error.args[0] in outputs:
                    raise
                raise BadInput(
                    f"{name} reads {error.args[0]!r}, which is not there; outputs are {', '.join(sorted(outputs))}."
                ) from error
        if value.ndim:
            raise ValueError(f"{name}.compute must give a scalar, not a tensor of shape {tuple(value.shape)}.")
        return value

    def compute(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The term itself; see `__call__`."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(batch, outputs).")


def required(outputs: Outputs, name: str, sentence: str) -> Any:
    """`outputs[name]`; where it is absent (or None), BadInput with `sentence`."""
    if outputs.get(name) is None:
        raise BadInput(sentence)
    return outputs[name]


def image_pair(batch: Batch, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """(reconstruction, target), both (B, 3, H, W) float32.

    Raises:
        BadInput: there is no reconstruction, or it has another shape than the target.
    """
    target = batch["image"].float()
    image = required(outputs, "image", "The image losses need a decoder that returns an image.").float()
    if image.shape != target.shape:
        raise BadInput(
            f"The decoder's image has shape {tuple(image.shape)} but the batch's has {tuple(target.shape)}; "
            "give model and data the same image size."
        )
    return image, target

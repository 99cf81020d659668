"""The base class of loss terms, and the terms of pixels and quantizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Quantizer

Batch = Mapping[str, Any]
Outputs = Mapping[str, Any]


class LossTerm:
    """One term of the loss of a tokenizer or a generator, named by `class_path` in a configuration.

    A subclass defines `compute`, which runs with autocast off and must cast its inputs to float32. A term is not an
    `nn.Module`, so it adds no parameters, buffers or checkpoint entries to a module with the term as an attribute. Only
    its `head` trains. Its constructor uses no file and no device.

    Attributes:
        weight: weight of the term in phases that set none.
        taps: paths of modules in the model, e.g. "decoder.blocks.2". Their outputs are added to `outputs` by that name.
        head: a module that trains with the model. It is in checkpoints, but not in the artifact.
        whole_batch: the term couples images, so the global batch must be one micro-batch on one device.
        needs_codebook: the term of a generator reads the vectors of the codes; see `use_codebook`.
        needs_reference: the term of a generator compares with the frozen generator `model.reference`, whose outputs for
            the same tokens and labels are `outputs["reference"]`.
    """

    weight = 1.0
    taps: Sequence[str] = ()
    head: nn.Module | None = None
    whole_batch = False
    needs_codebook = False
    needs_reference = False

    def attach(self, model: nn.Module) -> None:
        """Chooses `taps` and makes `head` for a model, before the first step, on any device including meta."""
        return

    def check(self) -> None:
        """Checks that the files for `setup` exist; reads none.

        Raises:
            BadInput: a file is missing.
        """
        return

    def setup(self, device: torch.device | str) -> None:
        """Loads the term's networks onto `device`; called once, before the first batch."""
        return

    def use_codebook(self, quantizer: Quantizer) -> None:
        """Receives the frozen quantizer of the generator's tokens, if `needs_codebook`; called once, after `setup`."""
        return

    def __call__(self, batch: Batch, outputs: Outputs, step: Step | None = None) -> Tensor:
        """The term's value, a float32 scalar under any autocast; see `evaluate`."""
        return self.evaluate(batch, outputs, step)[0]

    def evaluate(self, batch: Batch, outputs: Outputs, step: Step | None = None) -> tuple[Tensor, Any]:
        """The term's value, a float32 scalar, and the statistics for its `update`, or None.

        Args:
            batch: for a tokenizer: `image` (B, 3, H, W) in [0, 1], the target; for a generator: `tokens`, `label`.
            outputs: by name. A tokenizer gives `image` (B, 3, H, W); `prefix` (B, 3, p, p K) from decoders with a
                prefix head; `latents` (B, N, D) and `ids` (B, N) or (B, N, S); `quantizer_losses`, scalars by name;
                `statistics` for the quantizer's update. A generator gives `hidden` (B, N, width) at its head; `nats`
                (B, N); `inputs`, the ids that it read; `labels`; `logits` if its head has any; `with_labels`, a
                function from other labels (B,) to the outputs for them; `reference`, the frozen generator's outputs, if
                `needs_reference`. Both: the `taps`. If a bottleneck makes several decodings, all except the first one
                have `first`, the outputs of the first one.
            step: step of training; None in validation.

        Raises:
            BadInput: an output that the term needs is absent or does not fit the batch.
            ValueError: the term is not a scalar.
        """
        name = type(self).__name__
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            try:
                result = self.compute(batch, outputs, step)
            except KeyError as error:
                if error.args[0] in outputs:
                    raise
                raise BadInput(
                    f"{name} reads {error.args[0]!r}, which is not there; outputs are {', '.join(sorted(outputs))}."
                ) from error
        value, statistics = result if isinstance(result, tuple) else (result, None)
        if value.ndim:
            raise ValueError(f"{name}.compute must give a scalar, not a tensor of shape {tuple(value.shape)}.")
        return value, statistics

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor | tuple[Tensor, Any]:
        """The term, or the term and its statistics (a dataclass of tensors with `merge`); see `evaluate`."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(batch, outputs, step).")

    def update(self, statistics: Any) -> None:
        """Applies the statistics of one global batch, merged over micro-batches and processes.

        Keep state in buffers of `head`, so that it is in checkpoints and a step that is not finite can be undone.
        """
        return


def required(outputs: Outputs, name: str, sentence: str) -> Any:
    """`outputs[name]`. Raises BadInput with `sentence` if it is absent or None."""
    if outputs.get(name) is None:
        raise BadInput(sentence)
    return outputs[name]


def image_pair(batch: Batch, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """(reconstruction, target), both (B, 3, H, W) float32.

    Raises:
        BadInput: there is no reconstruction, or its shape differs from the target's.
    """
    target = batch["image"].float()
    image = required(outputs, "image", "The image losses need a decoder that returns an image.").float()
    if image.shape != target.shape:
        raise BadInput(
            f"The decoder's image has shape {tuple(image.shape)} but the batch's has {tuple(target.shape)}; "
            "give model and data the same image size."
        )
    return image, target


class MSE(LossTerm):
    """Mean squared difference of the pixels."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.mse_loss(*image_pair(batch, outputs))


class L1(LossTerm):
    """Mean absolute difference of the pixels."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.l1_loss(*image_pair(batch, outputs))


class QuantizerLoss(LossTerm):
    """Sum of the quantizer's losses (for a vector quantizer: codebook + commitment); 0 if it has none."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        losses = required(outputs, "quantizer_losses", "The quantizer loss needs a tokenizer with a quantizer.")
        return sum((loss.float() for loss in losses.values()), start=batch["image"].new_zeros(()).float())

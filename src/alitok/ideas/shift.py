"""Hita's shift: a causal decoder reads each patch some tokens early, so that it must predict the patch's token."""

from typing import Any

from torch import Tensor

from alitok.common.errors import BadInput
from alitok.models.decoder import Decoder


class ShiftedDecoder(Decoder):
    """`Decoder` that reads patch i at the token k places before it (Hita, arXiv 2507.02358).

    Patch i then depends on the prefix tokens and on the image tokens up to i - k. If k > 0, its own token is not among
    them, and the last k image tokens get no gradient from the image.

    Args:
        shift: k, at most the number of prefix tokens.
        arguments: arguments of `Decoder`, which must be causal.

    Raises:
        BadInput: a shift larger than the prefix, or a decoder that is not causal or drops its prefix.
    """

    def __init__(self, shift: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.drop_prefix:
            raise BadInput(
                "ShiftedDecoder reads patches at earlier tokens, the prefix's too: set drop_prefix to false."
            )
        if not 0 <= shift <= self.num_prefix:
            raise BadInput(f"ShiftedDecoder: shift must be 0 to the {self.num_prefix} prefix tokens, not {shift}.")
        if not self.blocks[0].attention.causal:  # type: ignore[union-attr]
            raise BadInput("ShiftedDecoder: with causal false every place sees every token; set causal to true.")
        self.shift = shift

    def at_image(self, hidden: Tensor) -> Tensor:
        end = hidden.shape[1] - self.shift
        return hidden[:, end - self.image_tokens : end]

"""Hita's shift: a causal decoder reads each patch some tokens early, so that a token must be foreseen."""

from typing import Any

from torch import Tensor

from alitok.common.errors import BadInput
from alitok.models.decoder import Decoder


class ShiftedDecoder(Decoder):
    """`Decoder` that reads patch i at the token k places before it (Hita, arXiv 2507.02358).

    Patch i is then made of the prefix tokens and of the image tokens up to i - k. Its own token is not among them if k
    > 0, and the last k image tokens get no gradient from the image.

    Args:
        shift: k, at most the number of prefix tokens.
        arguments: as `Decoder`, which must be causal.

    Raises:
        BadInput: a shift that leaves patches without a token to be read at, or a decoder that is not causal.
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

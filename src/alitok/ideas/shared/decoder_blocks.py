"""Helper for loss terms that read a decoder's blocks at the patches."""

from typing import Any

from torch import nn

from alitok.common.errors import BadInput
from alitok.models import seams
from alitok.models.tokenizer import Tokenizer


def decoder_with_blocks(model: nn.Module, reads: str) -> Any:
    """The tokenizer's decoder, if it has `blocks` and an `at_image` that finds the patches in their outputs.

    Args:
        reads: start of the error's sentence, e.g. "Semantic reads a block".

    Raises:
        BadInput: there is no such decoder.
    """
    decoder: Any = model.decoder if isinstance(model, Tokenizer) else None
    known = decoder is not None and type(decoder).at_image is not seams.Decoder.at_image
    if not known or "blocks" not in dict(decoder.named_children()):
        raise BadInput(
            f"{reads} of a tokenizer's decoder, and {type(decoder or model).__name__} has no `blocks`, or no `at_image`"
            " that finds the patches in them."
        )
    return decoder

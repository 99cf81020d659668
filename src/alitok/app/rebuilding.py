"""Reconstructs a picture: what is lost, what the first tokens show, what one token changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alitok.app.layout import Layout, decode_first
from alitok.app.settings import Ids, check_token
from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.data.pictures import crop, read_picture
from alitok.evaluation.reconstruction import psnr, ssim
from alitok.models.tokenizer import Tokenizer

GAIN = 4  # factor on difference images, which are too dark otherwise
NEAREST = 4  # number of nearest codes offered for a token, and of farthest ones
LARGEST_CODEBOOK = 2**16  # larger ones are not searched for these codes


@dataclass(frozen=True)
class Rebuilt:
    """A picture and its reconstruction, on the CPU.

    Attributes:
        original, image: (3, H, W) in [0, 1].
        ids: ids of all tokens, with the replaced ones.
        psnr, ssim: between image and original, PSNR in dB; None if the tokenizer decodes only the first tokens and was
            not trained for that.
        change: (3, H, W), `difference` to the reconstruction without replaced tokens; None if there are none.
    """

    original: Tensor
    image: Tensor
    ids: list[Ids]
    psnr: float | None
    ssim: float | None
    change: Tensor | None


def difference(left: Tensor, right: Tensor) -> Tensor:
    """`GAIN` times |left - right|, at most 1."""
    return ((left - right).abs() * GAIN).clamp(max=1)


def open_picture(path: str | Path, size: int) -> Tensor:
    """The center crop (3, size, size) of a picture file, in [0, 1]; raises UnreadableImage with the file's name."""
    return crop(read_picture(path, Path(path).name), size) / 255


@torch.inference_mode()
@float32_products(tf32=False)
def rebuild(
    tokenizer: Tokenizer,
    original: Tensor,
    keep: int | None = None,
    replaced: Mapping[int, Ids] | None = None,
    index: int = 0,
) -> Rebuilt:
    """Encode and decode a picture.

    Args:
        original: (3, H, W) in [0, 1].
        keep: number of first tokens to decode; None for all.
        replaced: position -> token that replaces the picture's.
        index: number of the picture among several, for a generative decoder.

    Raises:
        BadInput: more tokens than the picture has, or an invalid replaced token.
    """
    total = tokenizer.num_tokens
    count = total if keep is None else keep
    if not 1 <= count <= total:
        raise BadInput(f"A picture has 1 to {total} tokens for this tokenizer, not {count}.")
    whole = count == total or tokenizer.any_length
    layout = Layout.of(tokenizer)
    device = next(tokenizer.parameters()).device
    images = original[None].to(device)
    own = tokenizer.encode(images)
    ids = own.clone()
    for place, token in (replaced or {}).items():
        check_token(place, token, tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.sub_codes)
        ids[0, place] = torch.tensor(token if tokenizer.sub_codes > 1 else token[0], device=device)

    def shown(ids: Tensor) -> Tensor:
        if whole:
            return tokenizer.decode(ids[:, :count], indices=[index]).clamp(0, 1)
        return decode_first(tokenizer, layout, ids[0, :count])[None]

    image = shown(ids)
    change = difference(image, shown(own))[0].cpu() if replaced else None
    rows = ids[0].tolist()
    return Rebuilt(
        original,
        image[0].cpu(),
        [tuple(row) if isinstance(row, list) else (row,) for row in rows],
        psnr(image, images).item() if whole else None,
        ssim(image, images).item() if whole else None,
        change,
    )


@torch.inference_mode()
def neighbors(tokenizer: Tokenizer, code: int) -> tuple[list[int], list[int]]:
    """Ids of the codes nearest to one and farthest from it, by Euclidean distance between their latents.

    Empty if tokens have sub-codes or the codebook is too large to search.

    Raises:
        BadInput: no such code.
    """
    codes = tokenizer.codebook_size
    if not 0 <= code < codes:
        raise BadInput(f"There is no code {code}: they are 0 to {codes - 1}.")
    if tokenizer.sub_codes > 1 or codes > LARGEST_CODEBOOK:
        return [], []
    device = next(tokenizer.parameters()).device
    latents = tokenizer.quantizer.lookup(torch.arange(codes, device=device)[None])[0]  # (V, D)
    order = (latents - latents[code]).square().sum(-1).argsort(stable=True)
    others: list[int] = order[order != code].tolist()
    return others[:NEAREST], others[::-1][:NEAREST]

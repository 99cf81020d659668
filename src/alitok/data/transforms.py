"""Crops and flips of the tokenizer recipe, of evaluation and of the token cache; PIL in, uint8 tensors out."""

from math import ceil, floor

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Generator, Tensor

LARGEST_SCALED = 2**26  # pixels; Pillow takes four bytes a pixel: 256 MB


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").contiguous()


def train_crop(image: Image.Image, size: int, generator: Generator, *, crop: bool = True, flip: bool = True) -> Tensor:
    """The recipe's augmentation: shorter side to `size`, random crop, horizontal flip with probability 0.5.

    Args:
        generator: all that is random comes from here.
        crop: False takes `center_crop` in place of the random crop.

    Returns:
        (3, size, size) uint8.
    """
    # three draws whatever the options, so that one option does not move the numbers of another
    top, left, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    if crop:
        short = min(image.size)
        width, height = target = int(size * image.width / short), int(size * image.height / short)
        corner = int(left * (width - size + 1)), int(top * (height - size + 1))
        image = _scaled(image, target, Image.Resampling.BILINEAR, corner, size)
    else:
        image = center_crop(image, size)
    if flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(image)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop (Dhariwal & Nichol 2021): halve with BOX while >= 2x, then BICUBIC, then cut the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = target = round(image.width * scale), round(image.height * scale)
    return _scaled(image, target, Image.Resampling.BICUBIC, ((width - size) // 2, (height - size) // 2), size)


def ten_crop(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """The ten views of the token cache, in the order of torchvision's `TenCrop`.

    Views 0-4 are the corners (top left, top right, bottom left, bottom right) and the middle of the centre crop to
    `resize`; views 5-9 are the same five of the mirrored picture.

    Args:
        resize: side of the centre crop, None = int(1.1 * size).

    Returns:
        (10, 3, size, size) uint8.
    """
    side = ten_crop_side(size) if resize is None else resize
    return ten_views(to_tensor(center_crop(image, side)), size)


def ten_crop_side(size: int) -> int:
    """Side of the centre crop that the ten views are cut from: int(1.1 * size)."""
    return int(1.1 * size)


def ten_views(pictures: Tensor, size: int) -> Tensor:
    """Cuts the ten views of `ten_crop`: (..., 3, side, side) -> (..., 10, 3, size, size), on the pictures' device."""
    side = pictures.shape[-1]
    far, middle = side - size, round((side - size) / 2)
    places = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    cut = [
        whole[..., top : top + size, left : left + size]
        for whole in (pictures, pictures.flip(-1))
        for top, left in places
    ]
    return torch.stack(cut, dim=-4)


def _scaled(
    image: Image.Image, target: tuple[int, int], resample: Image.Resampling, corner: tuple[int, int], size: int
) -> Image.Image:
    """The `size` x `size` pixels at `corner` (left, top) of the picture scaled to `target` (width, height).

    If the scaled picture is above `LARGEST_SCALED`, only this part is made; it differs from the whole by rounding.
    """
    left, top = corner
    if target[0] * target[1] <= LARGEST_SCALED:
        whole = image if target == image.size else image.resize(target, resample)
        return whole if whole.size == (size, size) else whole.crop((left, top, left + size, top + size))
    (x, x0, x1), (y, y0, y1) = (_part(*side, size) for side in zip(image.size, target, corner, strict=True))
    # cut first: Pillow has the box as 32-bit floats, which are too coarse far from 0
    near = image.crop((x.start, y.start, x.stop, y.stop))
    # rows first, as Pillow enlarges a whole picture: it rounds in between
    rows = near.resize((size, near.height), resample, box=(x0, 0, x1, near.height))
    return rows.resize((size, size), resample, box=(0, y0, size, y1))


def _part(length: int, target: int, start: int, size: int) -> tuple[range, float, float]:
    """Of one side: the pixels that `size` scaled ones from `start` on are made of, and where these lie in them."""
    scale = length / target
    reach = 2 * max(scale, 1) + 1  # of a bicubic filter
    first, last = start * scale, (start + size) * scale
    pixels = range(max(0, floor(first - reach)), min(length, ceil(last + reach)))
    return pixels, first - pixels.start, min(last, length) - pixels.start

"""Crops and flips of the tokenizer recipe, of evaluation and of the token cache; PIL in, uint8 tensors out."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Generator, Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").contiguous()


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to `size` (PIL bilinear, antialiased); the longer side is rounded down."""
    width, height = image.size
    short = min(width, height)
    if short == size:
        return image
    target = (int(size * width / short), int(size * height / short))
    return image.resize(target, Image.Resampling.BILINEAR)


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
        image = resize_shorter(image, size)
        width, height = image.size
        image = _cut(image, int(top * (height - size + 1)), int(left * (width - size + 1)), size)
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
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _cut(image, (image.height - size) // 2, (image.width - size) // 2, size)


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


def _cut(image: Image.Image, top: int, left: int, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))

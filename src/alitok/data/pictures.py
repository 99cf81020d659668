"""From a file to uint8 crops: decoding and cropping of pictures."""

import io
from math import ceil, floor
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image
from torch import Generator, Tensor

from alitok.common.errors import BadInput
from alitok.data.encoded import ORIENTATION, tiff_number, without_metadata

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TURNS = {  # EXIF orientation -> the operation that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(BadInput):
    """One image is missing or damaged. A run may allow some of these and skip the images."""


def read_picture(content: bytes | str | Path, name: str) -> Image.Image:
    """Decodes a file, or its bytes, into an RGB picture; ignores damaged texts, profiles and EXIF data.

    Args:
        content: encoded bytes, or the path of a file.
        name: the picture's name in messages.

    Raises:
        UnreadableImage: the file is missing, is not an image or its pixels are damaged.
    """
    # read at once: the decoder would read a file in many small pieces
    encoded = content if isinstance(content, bytes) else read_file(content, name)
    try:
        try:
            return _decode(encoded)
        except Exception:  # Pillow refuses a whole picture if it cannot read a text or a profile
            bare = without_metadata(encoded)
            if bare is None:
                raise
            return _decode(bare[0], **bare[1])
    except Exception as error:  # the decoders raise nearly anything on damaged bytes
        # Pillow's message has the buffer's address, which differs from run to run
        reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(f"Cannot read the image {name}: {reason}; replace or remove it.") from error


def read_file(path: str | Path, name: str) -> bytes:
    """The bytes of a picture's file; raises UnreadableImage if it is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UnreadableImage(f"Image {name} is missing; it was there when the data set was listed.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UnreadableImage(f"Cannot read the image {name}: {error}; replace or remove it.") from error


def _decode(encoded: bytes, **info: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        image.info.update(info)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any picture to 8-bit RGB, upright.

    Applies the EXIF orientation, puts transparency on white, scales 16-bit gray to 8 bits (65,535 -> 255), reads
    floating-point gray as [0, 1], and takes the first frame of an animation.
    """
    if (turn := TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        gray = np.clip(np.asarray(image).astype(np.float64), 0, 65535) / 257
        image = Image.fromarray(np.rint(gray).astype(np.uint8))
    elif image.mode == "F":
        gray = np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255
        image = Image.fromarray(np.rint(gray).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # a second call would turn it again
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if it is missing or unreadable."""
    exif = image.info.get("exif")
    found = tiff_number(exif, ORIENTATION) if isinstance(exif, bytes) else None
    if found is not None:
        return found
    try:  # other places: XMP, the texts of a PNG
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # tags are damaged in many ways in real photographs whose pixels are intact
        return 1


LARGEST_SCALED = 2**26  # pixels; Pillow uses four bytes per pixel: 256 MB


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").contiguous()


def train_crop(image: Image.Image, size: int, generator: Generator, *, crop: bool = True, flip: bool = True) -> Tensor:
    """The recipe's augmentation: shorter side to `size`, random crop, horizontal flip with probability 0.5.

    Args:
        generator: source of all random numbers.
        crop: False replaces the random crop by `center_crop`.

    Returns:
        (3, size, size) uint8.
    """
    # always three draws, so that one option does not change the random numbers of the others
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


def crop(picture: Image.Image, size: int) -> Tensor:
    """ADM's center crop, (3, size, size) uint8."""
    return to_tensor(center_crop(picture, size))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop (Dhariwal & Nichol 2021): halve with BOX while >= 2x, scale with BICUBIC, then crop the center."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = target = round(image.width * scale), round(image.height * scale)
    return _scaled(image, target, Image.Resampling.BICUBIC, ((width - size) // 2, (height - size) // 2), size)


def ten_crop(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """The ten views of the token cache, in the order of torchvision's `TenCrop`.

    Views 0-4 are the corners (top left, top right, bottom left, bottom right) and the center of the center crop to
    `resize`. Views 5-9 are the same five of the mirrored picture.

    Args:
        resize: side of the center crop; None = int(1.1 * size).

    Returns:
        (10, 3, size, size) uint8.
    """
    side = ten_crop_side(size) if resize is None else resize
    return ten_views(to_tensor(center_crop(image, side)), size)


def ten_crop_side(size: int) -> int:
    """Side of the center crop from which the ten views are cut: int(1.1 * size)."""
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

    If the scaled picture is larger than `LARGEST_SCALED`, only this part is made, which rounds differently.
    """
    left, top = corner
    if target[0] * target[1] <= LARGEST_SCALED:
        whole = image if target == image.size else image.resize(target, resample)
        return whole if whole.size == (size, size) else whole.crop((left, top, left + size, top + size))
    (x, x0, x1), (y, y0, y1) = (_part(*side, size) for side in zip(image.size, target, corner, strict=True))
    # crop first: Pillow's box has 32-bit floats, which are too coarse far from 0
    near = image.crop((x.start, y.start, x.stop, y.stop))
    # widths first, as Pillow does for a whole picture: it rounds between the two
    rows = near.resize((size, near.height), resample, box=(x0, 0, x1, near.height))
    return rows.resize((size, size), resample, box=(0, y0, size, y1))


def _part(length: int, target: int, start: int, size: int) -> tuple[range, float, float]:
    """For one side: the input pixels of the `size` scaled pixels from `start` on, and the box of the latter in them."""
    scale = length / target
    reach = 2 * max(scale, 1) + 1  # reach of a bicubic filter
    first, last = start * scale, (start + size) * scale
    pixels = range(max(0, floor(first - reach)), min(length, ceil(last + reach)))
    return pixels, first - pixels.start, min(last, length) - pixels.start

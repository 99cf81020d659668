"""From the bytes of any image file to an 8-bit RGB picture."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from alitok.common.errors import BadInput

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class UnreadableImage(BadInput):
    """One image that is missing or damaged: named, and skipped where a run allows for some."""


def read_picture(content: bytes | str | Path, name: str) -> Image.Image:
    """Decodes a file, or its bytes, into an RGB picture.

    Args:
        content: encoded bytes, or the path of a file.
        name: what the message calls the picture.

    Raises:
        UnreadableImage: the file is missing, is no image or is damaged.
    """
    try:
        # read in one go: the decoder asks for a file in many small pieces
        encoded = content if isinstance(content, bytes) else Path(content).read_bytes()
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UnreadableImage(f"Image {name} is missing; it was there when the data set was listed.") from error
    except Exception as error:  # the decoders raise nearly anything on damaged bytes
        # Pillow calls the buffer by its address, which says nothing and differs from run to run
        reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(f"Cannot read the image {name}: {reason}; replace or remove it.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is laid on white; 16-bit grey is scaled to 8 bits (65,535 -> 255),
    floating-point grey is taken as [0, 1]; of an animation the first frame is used.
    """
    if _is_turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.float64), 0, 65535) / 257
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.mode == "F":
        grey = np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data asks for a turn; damaged EXIF data asks for nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # the tags of real photographs break in many ways; the pixels are there all the same
        return False

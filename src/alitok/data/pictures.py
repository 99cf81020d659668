"""From the bytes of any image file to an 8-bit RGB picture."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from alitok.common.errors import BadInput
from alitok.data.encoded import ORIENTATION, tiff_number, without_metadata

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TURNS = {  # EXIF orientation -> what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(BadInput):
    """One image that is missing or damaged: named, and skipped where a run allows for some."""


def read_picture(content: bytes | str | Path, name: str) -> Image.Image:
    """Decodes a file, or its bytes, into an RGB picture; damaged texts, profiles and EXIF data are passed over.

    Args:
        content: encoded bytes, or the path of a file.
        name: what the message calls the picture.

    Raises:
        UnreadableImage: the file is missing, is no image or its pixels are damaged.
    """
    # read in one go: the decoder asks for a file in many small pieces
    encoded = content if isinstance(content, bytes) else read_file(content, name)
    try:
        try:
            return _decode(encoded)
        except Exception:  # Pillow refuses a whole picture for a text or a profile that it cannot read
            bare = without_metadata(encoded)
            if bare is None:
                raise
            return _decode(bare[0], **bare[1])
    except Exception as error:  # the decoders raise nearly anything on damaged bytes
        # Pillow calls the buffer by its address, which says nothing and differs from run to run
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
    """Any picture as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is laid on white; 16-bit grey is scaled to 8 bits (65,535 -> 255),
    floating-point grey is taken as [0, 1]; of an animation the first frame is used.
    """
    if (turn := TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.float64), 0, 65535) / 257
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.mode == "F":
        grey = np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # a second call would turn it again
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none that can be read."""
    exif = image.info.get("exif")
    found = tiff_number(exif, ORIENTATION) if isinstance(exif, bytes) else None
    if found is not None:
        return found
    try:  # other places: XMP, the texts of a PNG
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the tags of real photographs break in many ways; the pixels are there all the same
        return 1

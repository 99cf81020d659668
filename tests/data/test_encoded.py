import io

import numpy as np
import pytest
from PIL import Image

from alitok.data.encoded import is_lossless, without_metadata

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def stored(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (stored("PNG"), True),
        (stored("BMP"), True),
        (stored("PPM"), True),
        (stored("TIFF"), True),
        (stored("TIFF", compression="tiff_lzw"), True),
        (stored("TIFF", compression="tiff_adobe_deflate"), True),
        (stored("TIFF", compression="jpeg"), False),
        (stored("WEBP", lossless=True), True),
        (stored("WEBP", lossless=True, xmp=b"x"), True),
        (stored("WEBP"), False),
        (stored("WEBP", NOISE.convert("RGBA"), xmp=b"x"), False),
        (stored("JPEG"), False),
        (stored("GIF"), False),
        (b"", False),
        (b"no picture", False),
    ],
)
def test_lossless_is_what_the_content_says(content, expected):
    assert is_lossless(content) is expected
    assert expected is False or np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(NOISE))


MODES = {
    "PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA", "L"),
    "TIFF": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16", "CMYK"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_pixels_need_no_metadata(kind, mode):
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    content = stored(kind, deep if mode == "I;16" else NOISE.convert(mode))
    bare, info = without_metadata(content)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bare))), np.asarray(Image.open(io.BytesIO(content))))
    assert info == {}


@pytest.mark.parametrize("length", range(0, 90, 3))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_cut_files_do_not_break_the_reader(kind, length):
    content = stored(kind)[:length]
    is_lossless(content)
    without_metadata(content)

import io

import numpy as np
import pytest
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.pictures import read_picture, to_rgb


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_mode_becomes_rgb():
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    grey = Image.fromarray(ramp)
    colour = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.ROTATE_90), grey))
    for mode, kind in [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("YCbCr", "JPEG")]:
        picture = read_picture(encoded(colour.convert(mode), kind), mode)
        assert (picture.mode, picture.size) == ("RGB", (32, 32)), mode
        if mode in ("P", "CMYK", "YCbCr"):
            assert np.abs(np.asarray(picture).astype(int) - np.asarray(colour)).mean() < 16, mode
    assert np.array_equal(np.asarray(to_rgb(grey))[..., 1], ramp)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    picture = read_picture(encoded(Image.fromarray(ramp), "PNG"), "deep")
    assert np.abs(np.asarray(picture)[..., 0].astype(float) - ramp / 257).max() <= 0.5


def test_floating_point_grey_is_taken_as_zero_to_one():
    picture = to_rgb(Image.fromarray(np.array([[0.0, 0.5, 1.0, 7.0]], dtype=np.float32)))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    image = image.quantize() if mode == "P" else image.convert(mode)
    picture = np.asarray(read_picture(encoded(image, "PNG"), mode))
    assert (picture[:, :2] == 0).all()
    assert (picture[:, 2:] == 255).all()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    picture = read_picture(encoded(image, "PNG", exif=exif), "turned")
    assert picture.size == (4, 8)
    assert np.asarray(picture)[0].min() == 255
    assert np.asarray(picture)[-1].max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_images_are_named(kind, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"broken.{kind.lower()}"
    path.write_bytes(encoded(noise, kind)[:900])
    with pytest.raises(BadInput, match="broken"):
        read_picture(path, str(path))
    with pytest.raises(BadInput, match="row 7"):
        read_picture(b"not an image", "in row 7")
    with pytest.raises(BadInput, match="missing"):
        read_picture(tmp_path / "gone.png", "gone.png")

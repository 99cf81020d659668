import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.pictures import UnreadableImage, read_picture, to_rgb


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


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, (H, W, 3) or (H, W, 4) uint16, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_and_alpha():
    pixels = np.zeros((4, 4, 4), dtype=np.uint16)
    pixels[..., 0], pixels[..., 1], pixels[:, :2, 3] = 65535, 32896, 65535
    colour = np.asarray(read_picture(deep_png(pixels[..., :3]), "deep"))
    assert np.abs(colour.astype(int) - [255, 128, 0]).max() <= 1
    faded = np.asarray(read_picture(deep_png(pixels), "deep with alpha"))
    assert np.abs(faded[:, :2].astype(int) - [255, 128, 0]).max() <= 1
    assert (faded[:, 2:] == 255).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_tiff_in_both_byte_orders(dtype):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(dtype)).save(buffer, "TIFF")
    picture = np.asarray(read_picture(buffer.getvalue(), "deep"))[..., 0]
    assert np.abs(picture.astype(float) - ramp / 257).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_photograph(orientation):
    upright = Image.fromarray(np.kron(np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3), np.ones((16, 16), np.uint8)))
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(upright if stored is None else upright.transpose(stored), "JPEG", exif=exif, quality=95)
    picture = read_picture(content, "turned")
    assert picture.size == upright.size
    assert np.abs(np.asarray(picture)[..., 0].astype(int) - np.asarray(upright)).mean() < 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("junk", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01\x12"])
def test_damaged_exif_data_costs_no_picture(junk):
    content = encoded(Image.new("RGB", (8, 8), (250, 0, 0)), "JPEG", exif=b"Exif\0\0" + junk)
    assert read_picture(content, "odd").getpixel((4, 4))[0] > 240


def test_the_reason_is_the_same_each_time():
    messages = set()
    for _ in range(2):
        with pytest.raises(UnreadableImage) as caught:
            read_picture(b"not an image", "x.jpg")
        messages.add(str(caught.value))
    assert messages == {"Cannot read the image x.jpg: its format is not known; replace or remove it."}

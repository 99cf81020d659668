import io
import struct
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from alitok.common.errors import BadInput
from alitok.data.pictures import UnreadableImage, read_picture, to_rgb
from alitok.data.sources import open_source
from alitok.evaluation.image_sets import FolderImages


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_mode_becomes_rgb():
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    gray = Image.fromarray(ramp)
    color = Image.merge("RGB", (gray, gray.transpose(Image.Transpose.ROTATE_90), gray))
    for mode, kind in [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("YCbCr", "JPEG")]:
        picture = read_picture(encoded(color.convert(mode), kind), mode)
        assert (picture.mode, picture.size) == ("RGB", (32, 32)), mode
        if mode in ("P", "CMYK", "YCbCr"):
            assert np.abs(np.asarray(picture).astype(int) - np.asarray(color)).mean() < 16, mode
    assert np.array_equal(np.asarray(to_rgb(gray))[..., 1], ramp)


def test_sixteen_bit_gray_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    picture = read_picture(encoded(Image.fromarray(ramp), "PNG"), "deep")
    assert np.abs(np.asarray(picture)[..., 0].astype(float) - ramp / 257).max() <= 0.5


def test_floating_point_gray_is_taken_as_zero_to_one():
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


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, (H, W, 3) or (H, W, 4) uint16, which Pillow cannot write."""

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_color_and_alpha():
    pixels = np.zeros((4, 4, 4), dtype=np.uint16)
    pixels[..., 0], pixels[..., 1], pixels[:, :2, 3] = 65535, 32896, 65535
    color = np.asarray(read_picture(deep_png(pixels[..., :3]), "deep"))
    assert np.abs(color.astype(int) - [255, 128, 0]).max() <= 1
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


UPRIGHT = np.kron(np.arange(1, 17, dtype=np.uint8).reshape(4, 4) * 15, np.ones((8, 8), np.uint8))[..., None].repeat(
    3, 2
)
TURN = (0x112, 3, 1, b"\6\0\0\0")  # to be turned clockwise by 90 degrees
# tag, type, number of values, four bytes: what is in real files and Pillow does not write back, or not even read
TAGS = [
    (0x128, 2, 2, b"2\0\0\0"),  # a unit as text
    (0x11A, 2, 4, b"72\0\0"),
    (0x100, 11, 1, struct.pack("<f", 4.5)),
    (0x100, 9, 1, struct.pack("<i", -5)),
    (0x103, 1, 1, b"\6\0\0\0"),
    (0xA005, 2, 4, b"abc\0"),
    (0x8769, 4, 1, b"\xff\xff\xff\xff"),  # a directory outside of the data
    (0x10F, 2, 1000, b"\xff\xff\0\0"),  # a text outside of the data, before the orientation
    (0x102, 3, 0xFFFFFFFF, b"\0\0\0\0"),
]


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in sorted(tags))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG of UPRIGHT without JFIF's segment, and with others."""
    plain = encoded(Image.fromarray(UPRIGHT), "JPEG", quality=95)
    start = 4 + struct.unpack(">H", plain[4:6])[0]
    added = (bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return plain[:2] + b"".join(added) + plain[start:]


def png(*chunks: bytes, after: bool = False) -> bytes:
    plain = encoded(Image.fromarray(UPRIGHT), "PNG")
    place = len(plain) - 12 if after else 33
    return plain[:place] + b"".join(chunks) + plain[place:]


def tiff(*tags: tuple[int, int, int, bytes]) -> bytes:
    height, width, _ = UPRIGHT.shape
    numbers = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 279: width * height, 273: 0}
    entries = {tag: (tag, 4, 1, struct.pack("<I", number)) for tag, number in numbers.items()}
    entries |= {tag[0]: tag for tag in tags}
    entries[273] = (273, 4, 1, struct.pack("<I", 14 + 12 * len(entries)))
    return exif(*entries.values())[6:] + UPRIGHT[..., 0].tobytes()


ODD_EXIF, TEXT = exif(TURN, TAGS[0]), zlib.compress(b"a" * 1_100_000)
XMP = b'<x tiff:Orientation="6"/>'
JPEG_SEGMENTS = {
    "JFIF": (0xE0, b"JFIF\0"),
    "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "ICC": (0xE2, b"ICC_PROFILE\0"),
    "MPO": (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0" + bytes(4)),
    "Photoshop": (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "Adobe": (0xEE, b"Adobe"),
    "comment": (0xFE, b"\xff" * 100),
}
PNG_CHUNKS = {
    "text": chunk(b"zTXt", b"x\0\0" + TEXT),
    "international text": chunk(b"iTXt", b"x\0\1\0\0\0" + TEXT),
    "many texts": chunk(b"tEXt", b"x\0" + b"a" * 1_000_000) * 70,
    "profile": chunk(b"iCCP", b"x\0\0" + TEXT),
    "empty profile": chunk(b"iCCP", b""),
    "checksum": chunk(b"tEXt", b"x\0y")[:-4] + bytes(4),
    "gamma": chunk(b"gAMA", b"\0"),
    "animation": chunk(b"acTL", b"\0"),
    "raw EXIF": chunk(b"tEXt", b"Raw profile type exif\0zz"),
}


def avif() -> bytes:
    """With EXIF data that are none; the turn is in the properties of the image too."""
    content = encoded(Image.fromarray(UPRIGHT), "AVIF", exif=exif(TURN, (0x10E, 2, 2, b"a\0\0\0")), quality=100)
    return content.replace(b"II*\0\x08", b"XX*\0\x08")


def webp(lossless: bool, cut: int = 0) -> bytes:
    content = encoded(Image.fromarray(UPRIGHT), "WEBP", lossless=lossless, exif=ODD_EXIF, xmp=b"\xff", icc_profile=b"x")
    return content[: len(content) - cut]


METADATA = {
    **{f"JPEG EXIF {tag}": jpeg((0xE1, exif(TURN, tag))) for tag in TAGS},
    **{f"JPEG {name}": jpeg(segment, (0xE1, ODD_EXIF)) for name, segment in JPEG_SEGMENTS.items()},
    "JPEG XMP alone": jpeg(JPEG_SEGMENTS["ICC"], (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "JPEG cut EXIF": jpeg((0xE1, exif(TURN, (0x110, 2, 99, bytes(4)))[:40])),
    "JPEG both resolutions": jpeg((0xE1, exif(TURN, TAGS[0], (0x11A, 2, 1, bytes(4))))),
    **{f"PNG EXIF {tag}": png(chunk(b"eXIf", exif(TURN, tag)[6:])) for tag in TAGS},
    **{f"PNG {name}": png(chunk(b"eXIf", ODD_EXIF[6:]), content) for name, content in PNG_CHUNKS.items()},
    **{
        f"PNG {name} last": png(chunk(b"eXIf", ODD_EXIF[6:]), content, after=True)
        for name, content in PNG_CHUNKS.items()
    },
    **{f"WebP {lossless}, cut by {cut}": webp(lossless, cut) for lossless in (True, False) for cut in (0, 1, 5)},
    **({"AVIF": avif()} if features.check("avif") else {}),
    "TIFF": tiff(TURN),
    **{f"TIFF {tag}": tiff(TURN, tag) for tag in [*TAGS[6:8], (700, 4, 1, bytes(4)), (0x11A, 2, 4, b"72\0\0")]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_costs_neither_the_picture_nor_its_turn(name):
    picture = read_picture(METADATA[name], name)
    expected = np.rot90(UPRIGHT, -1)
    most = 40 if name.startswith(("JPEG", "WebP False", "AVIF")) else 0
    assert np.abs(np.asarray(picture).astype(int) - expected).max() <= most
    assert not picture.info  # nothing that would turn it again


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damaged_pixels_are_not_passed_over(kind):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(UnreadableImage), warnings.catch_warnings(action="ignore"):
        read_picture(content[: len(content) // 2], kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", ["class folder", "table", "streamed table", "flat folder"])
def test_every_reader_passes_over_damaged_metadata(reader, tmp_path):
    contents = [
        METADATA[name] for name in (f"JPEG EXIF {TAGS[0]}", "JPEG Photoshop", "PNG text last", "WebP True, cut by 1")
    ]
    expected = [np.asarray(read_picture(content, "x")) for content in contents]
    if "table" in reader:
        rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [0, 1, 0, 1]}
        pq.write_table(pa.table(rows), tmp_path / "train.parquet")
        source = open_source(str(tmp_path), val_fraction=0, streaming=reader == "streamed table")
        found = [np.asarray(source[index][0]) for index in range(4)]
    else:
        folder = tmp_path / "x" if reader == "class folder" else tmp_path
        folder.mkdir(exist_ok=True)
        for index, content in enumerate(contents):
            (folder / f"{index}.png").write_bytes(content)
        if reader == "class folder":
            source = open_source(str(tmp_path), val_fraction=0)
            found = [np.asarray(source[index][0]) for index in range(4)]
        else:
            found = [np.asarray(image.permute(1, 2, 0)) for image in FolderImages(tmp_path).load(range(4))]
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))

"""Reads encoded pictures without decoding pixels: orientation, whether the form is lossless, metadata."""

import re
import struct
from collections.abc import Iterator

ORIENTATION, COMPRESSION = 0x112, 0x103  # tags of TIFF and EXIF
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # beginnings of JPEG segments
TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # beginning of a file -> its byte order
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
AVIF, AVIF_EXIF = b"ftypavif", re.compile(rb"(infe\x02.{7})Exif", re.DOTALL)  # an item, up to its type
WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # chunk -> its flag in the chunk VP8X
# tags that the decoder needs, and the orientation
TIFF_PIXELS = {*range(256, 260), 262, 266, 273, ORIENTATION, *range(277, 280), 284, 292, 293, 317, 320}
TIFF_PIXELS |= {*range(322, 326), 332, 338, 339, 347, *range(512, 522), *range(529, 533)}
TIFF_NUMBERS = {1: "B", 3: "H", 4: "I"}  # type of an entry -> its struct format
# none, the fax codes, LZW, deflate, packbits, old deflate, LZMA, Zstandard
TIFF_LOSSLESS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)

Chunk = tuple[bytes, int, int]  # name, begin and end in the file
Info = dict[str, bytes]


def tiff_number(content: bytes, tag: int) -> int | None:
    """An integer in the first directory of TIFF or EXIF data; None if it is not there.

    Reads only this entry: Pillow's reader stops at the first damaged one.
    """
    content = content.removeprefix(EXIF)
    order, entries = _tiff_entries(content)
    for place in entries:
        found, kind, values = struct.unpack_from(f"{order}HHI", content, place)
        if found == tag and values == 1 and kind in TIFF_NUMBERS:
            return int(struct.unpack_from(order + TIFF_NUMBERS[kind], content, place + 8)[0])
    return None


def is_lossless(content: bytes) -> bool:
    """Whether a file's form keeps pixels without loss; False if unknown."""
    if content[:4] in TIFF:
        return tiff_number(content, COMPRESSION) in (None, *TIFF_LOSSLESS)
    if _is_webp(content):
        names = {name for name, _, _ in _webp_chunks(content)}
        return b"VP8L" in names and b"VP8 " not in names
    return content.startswith((PNG, b"BM", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"))


def without_metadata(content: bytes) -> tuple[bytes, Info] | None:
    """A picture's file without the data that its pixels do not need, and its EXIF data and XMP for Pillow's `info`.

    None if the file is not JPEG, PNG, WebP, TIFF or AVIF.
    """
    if content[:4] in TIFF:
        return _bare_tiff(content), {}
    if content.startswith(JPEG):
        return _bare_jpeg(content)
    if content.startswith(PNG):
        chunks = list(_png_chunks(content))
        kept = (content[start:end] for name, start, end in chunks if name in PNG_PIXELS)
        exif = [content[start + 8 : end - 4] for name, start, end in chunks if name == b"eXIf"]
        return PNG + b"".join(kept), {"exif": exif[0]} if exif else {}
    if content[4:12] == AVIF:
        return AVIF_EXIF.sub(rb"\1none", content), {}  # the orientation is also in the image's properties
    return _bare_webp(content) if _is_webp(content) else None


def _tiff_entries(content: bytes) -> tuple[str, range]:
    """Byte order, and the offsets of the first directory's entries; empty if there is none."""
    order = TIFF.get(content[:4], "")
    start = struct.unpack_from(f"{order}I", content, 4)[0] if order and len(content) >= 8 else len(content)
    if len(content) < start + 2:
        return order, range(0)
    count = struct.unpack_from(f"{order}H", content, start)[0]
    return order, range(start + 2, min(start + 2 + 12 * count, len(content) - 11), 12)


def _bare_tiff(content: bytes) -> bytes:
    """Replaces the other entries of the directory by zeros at its end, so that no offset in the file changes."""
    order, entries = _tiff_entries(content)
    kept = [
        content[place : place + 12]
        for place in entries
        if struct.unpack_from(f"{order}H", content, place)[0] in TIFF_PIXELS
    ]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept)
    start, end = entries.start - 2, entries.stop
    return content[:start] + directory.ljust(end - start, b"\0") + content[end:] if kept else content


def _bare_jpeg(content: bytes) -> tuple[bytes, Info]:
    kept, info, place = [JPEG], Info(), 2
    while content[place : place + 1] == b"\xff" and len(content) >= place + 4:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == START_OF_SCAN:
            break
        end = place + 2 + struct.unpack_from(">H", content, place + 2)[0]
        body = content[place + 4 : end]
        if marker == 0xE1 and body.startswith(EXIF):
            info.setdefault("exif", body)
        elif marker == 0xE1 and body.startswith(XMP):
            info["xmp"] = body.removeprefix(XMP)
        # the decoder reads the coding of colors from these two
        colors = (marker == 0xE0 and body.startswith(b"JFIF\0")) or (marker == 0xEE and body.startswith(b"Adobe"))
        if (colors and len(body) >= 12) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[place:end])
        place = end
    return b"".join([*kept, content[place:]]), info


def _png_chunks(content: bytes) -> Iterator[Chunk]:
    place = len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        yield content[place + 4 : place + 8], place, end
        place = end


def _bare_webp(content: bytes) -> tuple[bytes, Info]:
    kept, info = [], Info()
    for name, start, end in _webp_chunks(content):
        if name in (b"EXIF", b"XMP "):
            info[name.decode().strip().lower()] = content[start + 8 : end]
        if name in WEBP_METADATA:
            continue
        chunk = bytearray(content[start:end])
        if name == b"VP8X":
            chunk[8] &= ~sum(WEBP_METADATA.values())
        kept.append(bytes(chunk))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, info


def _is_webp(content: bytes) -> bool:
    return content.startswith(b"RIFF") and content[8:12] == b"WEBP"


def _webp_chunks(content: bytes) -> Iterator[Chunk]:
    place = 12
    while place < len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        end = place + 8 + size + size % 2
        yield content[place : place + 4], place, end
        place = end

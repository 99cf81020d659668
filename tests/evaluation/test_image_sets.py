"""Image sets: the two forms that are read, and a sentence for each that cannot be."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.data.pictures import to_tensor
from alitok.data.sources import open_source
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.image_sets import Reader, SourceImages, array_names, holds_images, open_images
from alitok.evaluation.measure import measure
from alitok.evaluation.protocol import is_spec

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


def save_pngs(folder: Path, images: Any = IMAGES) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
def test_batches_come_in_order(tmp_path: Path, form: str) -> None:
    path = tmp_path / "set.npz"
    if form == "stored":
        np.savez(path, IMAGES, other=np.zeros(3))
    elif form == "compressed":
        np.savez_compressed(path, arr_0=IMAGES)
    else:
        path = save_pngs(tmp_path / "set")
        (path / "notes.txt").write_text("no picture")
    images = open_images(path)
    assert (images.count, images.size) == (7, 16)
    index, parts = zip(*Reader(images, 3), strict=True)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(index), torch.arange(7))
    assert torch.equal(torch.cat(parts), torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert images.lossless


def test_array_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=IMAGES, mu=np.zeros(2))
    assert array_names(tmp_path / "a.npz") == {"arr_0", "mu"}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "no array 'arr_0', only images"),
        ({"arr_0": IMAGES / np.float32(255)}, "must be uint8 .* not float32"),
        ({"arr_0": IMAGES[..., :1]}, "must be uint8"),
        ({"arr_0": IMAGES[0]}, "must be uint8"),
        ({"arr_0": IMAGES[:0]}, "must be uint8"),
        ({"arr_0": IMAGES[:, :12]}, "12 x 16 are not square"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran order"),
    ],
)
def test_other_arrays(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(BadInput, match=words):
        open_images(tmp_path / "set.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", ["cut", "flipped", "header"])
def test_damaged_npz(tmp_path: Path, save: Any, damage: str) -> None:
    path = tmp_path / "set.npz"
    save(path, arr_0=IMAGES)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content[50:80] = b"x" * 30
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"set\.npz"):
        list(Reader(open_images(path), 3))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        open_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no PNG"):
        open_images(tmp_path / "empty")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match=r"is no \.npz"):
        open_images(tmp_path / "text.npz")


def test_folders_of_other_pictures(tmp_path: Path) -> None:
    mixed = save_pngs(tmp_path / "mixed", [*IMAGES[:2], np.zeros((20, 20, 3), np.uint8)])
    with pytest.raises(BadInput, match=r"002\.png has 20 x 20 pixels"):
        list(Reader(open_images(mixed), 2))
    with pytest.raises(BadInput, match="not square"):
        open_images(save_pngs(tmp_path / "wide", [IMAGES[0, :12]]))
    broken = save_pngs(tmp_path / "broken")
    (broken / "004.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"Cannot read the image .*004\.png"):
        list(Reader(open_images(broken), 2))


def test_what_a_folder_holds(tmp_path: Path) -> None:
    pngs = save_pngs(tmp_path / "pngs")
    assert holds_images(pngs)
    Image.fromarray(IMAGES[0]).save(pngs / "zzz.jpg")
    assert open_images(pngs).count == 8
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert not holds_images(tmp_path / "classes")
    assert holds_images(tmp_path / "empty")  # an empty folder is a folder of PNG with none in it
    assert not holds_images(tmp_path / "none")


@pytest.mark.parametrize("beside", ["classes", "splits", "saved", "parquet", "tar"])
def test_a_stray_picture_beside_a_data_set_makes_no_set_of_it(tmp_path: Path, beside: str) -> None:
    folder = save_pngs(tmp_path / "pets", IMAGES[:1])
    assert holds_images(folder)
    if beside == "classes":
        save_pngs(folder / "a")
        assert holds_images(folder)  # one folder of pictures may be anything
        save_pngs(folder / "b")
    elif beside == "splits":
        (folder / "train").mkdir()
        save_pngs(folder / "train" / "a")
    elif beside == "saved":
        (folder / "dataset_dict.json").touch()
    else:
        (folder / f"train-0.{beside}").touch()
    assert not holds_images(folder)
    assert is_spec(str(folder))
    (folder / "samples.json").touch()  # `alitok sample` wrote the pictures
    assert holds_images(folder)


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(IMAGES[0])
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ("name", "content", "lossless"),
    [
        ("z.png", stored(PICTURE, "PNG"), True),
        ("z.PNG", stored(PICTURE, "PNG"), True),
        ("z.jpg", stored(PICTURE, "PNG"), True),
        ("z.jpg", stored(PICTURE, "JPEG"), False),
        ("z.png", stored(PICTURE, "JPEG"), False),
        ("z.webp", stored(PICTURE, "WEBP", lossless=True), True),
        ("z.WEBP", stored(PICTURE, "WEBP"), False),
        ("z.png", stored(PICTURE, "WEBP"), False),
        ("z.tiff", stored(PICTURE, "TIFF"), True),
        ("z.TIF", stored(PICTURE, "TIFF", compression="jpeg"), False),
    ],
)
def test_content_says_whether_a_folder_is_lossless(tmp_path: Path, name: str, content: bytes, lossless: bool) -> None:
    folder = save_pngs(tmp_path / "set")
    (folder / name).write_bytes(content)
    reader = Reader(open_images(folder), 3)
    assert sum(len(part) for part, _ in reader) == 8
    assert reader.lossless() is lossless


FORMS = {
    "RGB": stored(PICTURE, "PNG"),
    "transparent": stored(Image.new("RGBA", (16, 16), (9, 9, 9, 0)), "PNG"),
    "palette": stored(PICTURE.quantize(), "PNG", transparency=0),
    "gray and alpha": stored(PICTURE.convert("LA"), "PNG"),
    "16 bits": stored(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257), "PNG"),
    "turned PNG": stored(PICTURE, "PNG", exif=TURNED),
    "turned JPEG": stored(PICTURE, "JPEG", exif=TURNED),
    "CMYK": stored(PICTURE.convert("CMYK"), "JPEG"),
    "JPEG": stored(PICTURE, "JPEG"),
    "WebP": stored(PICTURE, "WEBP"),
    "GIF": stored(PICTURE, "GIF"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_the_same_in_a_flat_and_in_a_class_folder(tmp_path: Path, form: str) -> None:
    for place in (tmp_path / "flat" / "0.png", tmp_path / "classes" / "x" / "0.png"):
        place.parent.mkdir(parents=True)
        place.write_bytes(FORMS[form])
    source = open_source(str(tmp_path / "classes"), val_fraction=0)
    flat = open_images(tmp_path / "flat").load(range(1))
    assert torch.equal(flat[0], to_tensor(source[0][0]))


def digest(images: Any, batch: int) -> str:
    reader = Reader(images, batch)
    assert len(list(reader)) == len(reader)
    return reader.digest()


def test_digest_is_of_the_pixels_and_their_order(tmp_path: Path) -> None:
    first = digest(open_images(save_pngs(tmp_path / "a")), 3)
    assert digest(open_images(save_pngs(tmp_path / "b")), 2) == first
    assert len(first) == 64
    assert digest(open_images(save_pngs(tmp_path / "c", IMAGES[::-1])), 3) != first
    np.savez(tmp_path / "set.npz", IMAGES)
    assert digest(open_images(tmp_path / "set.npz"), 3) == sha256(tmp_path / "set.npz")


def test_labels_that_adm_samplers_write(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", IMAGES, np.arange(7))
    labels = open_images(tmp_path / "set.npz").labels
    assert labels is not None
    assert labels.tolist() == list(range(7))
    np.savez(tmp_path / "other.npz", IMAGES, np.arange(3))
    assert open_images(tmp_path / "other.npz").labels is None


def test_pictures_of_a_data_set() -> None:
    class Numbers(list[tuple[Image.Image, int]]):
        name = description = "numbers"
        class_names = ("all",)

    source = Numbers((Image.new("RGB", (9, 7), (number,) * 3), 0) for number in range(5))
    images = SourceImages(source, 4)  # type: ignore[arg-type]
    assert (images.count, images.size, images.name, images.lossless) == (5, 4, "numbers", False)
    assert torch.cat([part for _, part in Reader(images, 2)])[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_of_many_images_evenly_spaced_ones_keep_their_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alitok.evaluation.measure.KEPT", 5)
    torch.manual_seed(0)
    extractor = ClassifierExtractor(Classifier(num_classes=4, width=2), "random")
    images = open_images(
        save_pngs(tmp_path / "set", np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8))
    )
    pooled = extractor(images.load(range(12))).pooled
    found = measure(images, extractor, 4, keep=True).features
    assert found is not None
    torch.testing.assert_close(found, pooled[[0, 3, 5, 8, 10]].float())

"""Image sets: the two forms that are read, and a sentence for each that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.common.errors import BadInput
from alitok.evaluation.image_sets import array_names, open_images

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
    parts = list(images.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), torch.from_numpy(IMAGES).permute(0, 3, 1, 2))


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
        list(open_images(path).batches(3))


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
        list(open_images(mixed).batches(2))
    with pytest.raises(BadInput, match="not square"):
        open_images(save_pngs(tmp_path / "wide", [IMAGES[0, :12]]))
    broken = save_pngs(tmp_path / "broken")
    (broken / "004.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"004\.png is no readable PNG"):
        list(open_images(broken).batches(2))

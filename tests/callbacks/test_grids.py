"""Picture grids."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alitok.callbacks.pictures import save_grid


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_rows_and_values(tmp_path: Path) -> None:
    images = torch.linspace(-0.2, 1.2, 5)[:, None, None, None].expand(5, 3, 16, 16)
    save_grid(images, tmp_path / "grid.png", columns=2)
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (3 * 18 + 2, 2 * 18 + 2, 3)
    assert (grid[2:18, 2:18] == 0).all()  # below 0 is black
    assert abs(int(grid[20, 2, 0]) - 127) <= 1
    assert (grid[0] == 255).all()  # white between the pictures


def test_titles_stand_above_their_columns_and_are_cut_to_them(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 64, 64)
    save_grid(images, tmp_path / "plain.png", 2)
    save_grid(images, tmp_path / "titled.png", 2, ["a", "b"])
    save_grid(images, tmp_path / "first.png", 2, ["a", ""])
    save_grid(images, tmp_path / "long.png", 2, ["a", "b" * 200])
    plain, titled, first, long = (read(tmp_path / f"{name}.png") for name in ("plain", "titled", "first", "long"))
    strip = len(titled) - len(plain)
    assert strip == 66 // 4
    assert np.array_equal(titled[strip:], plain)
    ink = titled[:strip] < 128
    assert ink[:, :66].any()
    assert ink[:, 68:].any()
    assert not (first[:strip, 68:] < 128).any()
    assert np.array_equal(long[:strip, :66], titled[:strip, :66])
    assert long.shape == titled.shape

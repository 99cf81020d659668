"""Picture grids."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from alitok.artifacts.folder import read_card
from alitok.callbacks.pictures import ReconstructionGrid, SampleGrid, save_grid
from alitok.common.errors import BadInput


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
    images = torch.zeros(4, 3, 128, 128)
    save_grid(images, tmp_path / "plain.png", 2)
    save_grid(images, tmp_path / "titled.png", 2, ["a", "b"])
    save_grid(images, tmp_path / "first.png", 2, ["a", ""])
    save_grid(images, tmp_path / "long.png", 2, ["a", "b" * 200])
    plain, titled, first, long = (read(tmp_path / f"{name}.png") for name in ("plain", "titled", "first", "long"))
    strip = len(titled) - len(plain)
    assert strip == 130 // 4
    assert np.array_equal(titled[strip:], plain)
    ink = titled[:strip] < 128
    assert ink[:, :130].any()
    assert ink[:, 132:].any()
    assert not (first[:strip, 132:] < 128).any()
    assert np.array_equal(long[:strip, :130], titled[:strip, :130])
    assert long.shape == titled.shape


@pytest.mark.parametrize(("batch", "columns", "rows"), [(12, 8, 2), (16, 8, 4), (20, 8, 4), (3, 3, 2)])
def test_each_original_stands_above_its_reconstruction(batch: int, columns: int, rows: int, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        is_global_zero=True, sanity_checking=False, global_step=1, default_root_dir=str(tmp_path), loggers=[]
    )
    images = torch.arange(batch).float()[:, None, None, None].expand(-1, 3, 32, 32) / 32
    ReconstructionGrid().on_validation_batch_end(trainer, None, {"image": images + 0.25}, {"image": images}, 0)
    grid = read(tmp_path / "pictures" / "reconstruction-0000001.png")
    size = 34
    assert grid.shape == (rows * size + 2, columns * size + 2, 3)
    shown = grid[size // 2 :: size, size // 2 :: size, 0][:rows, :columns].astype(int)
    assert (abs(shown[1::2] - shown[::2] - 64) <= 1).all()


def test_the_tokenizer_of_samples_is_looked_at_before_training(artifacts: Path, tmp_path: Path) -> None:
    module: Any = SimpleNamespace(generator=SimpleNamespace(num_tokens=21))

    def start(tokenizer: Path, digest: str | None) -> None:
        cache = SimpleNamespace(folder=tmp_path / "tokens", digest=digest)
        trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(token_cache=cache))
        SampleGrid(str(tokenizer)).setup(trainer, module, "fit")

    digest = read_card(artifacts / "tokenizer")["digest"]
    start(artifacts / "tokenizer", digest)
    start(artifacts / "stranger", None)  # a cache made elsewhere does not say
    with pytest.raises(BadInput, match=r"no such folder; .*TOKENIZER="):
        start(tmp_path / "none", digest)
    with pytest.raises(BadInput, match=rf"tokens was made by tokenizer {digest[:12]}, but .*stranger is"):
        start(artifacts / "stranger", digest)


def test_small_pictures_grow_under_titles_and_accents_are_drawn(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    for name, title in (("plain", "cafe"), ("accent", "caf\u00e9"), ("none", "caf\uffff"), ("word", "automobile")):
        save_grid(images, tmp_path / f"{name}.png", 2, [title, ""])
    plain, accent, none, word = (read(tmp_path / f"{name}.png") for name in ("plain", "accent", "none", "word"))
    assert plain.shape == (130 + 2 + 130 // 4, 2 * 130 + 2, 3)
    assert not np.array_equal(accent, plain)
    assert not np.array_equal(accent, none)
    columns = np.flatnonzero((word[: 130 // 4] < 128).any((0, 2)))
    assert columns.max() < 130
    assert columns.max() > np.flatnonzero((plain[: 130 // 4] < 128).any((0, 2))).max() + 40  # not cut to "autom"

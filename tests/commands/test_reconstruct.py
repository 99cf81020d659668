import argparse

import numpy as np
import pytest
from PIL import Image

from alitok.artifacts.folder import save_artifact
from alitok.commands import reconstruct
from alitok.common.build import build
from alitok.common.errors import BadInput


@pytest.fixture
def run(tmp_path, golden, small_tokenizer_block):
    block = small_tokenizer_block(2)
    save_artifact(tmp_path / "tokenizer", block, golden.randomise(build(block)), {"kind": "tokenizer"})

    def run(*images) -> None:
        parser = argparse.ArgumentParser()
        reconstruct.add_arguments(parser)
        paths = [str(path) for path in images]
        reconstruct.run(
            parser.parse_args(["--tokenizer", str(tmp_path / "tokenizer"), *paths, "--out", str(tmp_path / "out")])
        )

    return run


def picture(path, size=(50, 40)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def test_pictures_and_folders(tmp_path, run, capsys):
    for index in range(9):  # more than one batch
        picture(tmp_path / "some" / f"p{index}.png")
    picture(tmp_path / "p0.jpg", size=(64, 100))
    run(tmp_path / "p0.jpg", tmp_path / "some")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(["grid.png", "p0.png", "p0-2.png", *(f"p{index}.png" for index in range(1, 9))])
    with Image.open(tmp_path / "out" / "p0.png") as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    with Image.open(tmp_path / "out" / "grid.png") as image:
        assert image.size == (8 * 36 + 4, 3 * 36 + 4)  # ten pairs, four to a row
    output = capsys.readouterr().out
    assert "PSNR" in output
    assert "p0-2.png" in output
    assert "mean" in output


def test_single_picture_beside_its_reconstruction(tmp_path, run):
    picture(tmp_path / "grid.png", size=(32, 32))
    run(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as given, Image.open(tmp_path / "out" / "grid.png") as grid:
        assert np.array_equal(np.array(grid)[4:36, 4:36], np.array(given))
        with Image.open(tmp_path / "out" / "grid-2.png") as decoded:
            assert np.array_equal(np.array(grid)[4:36, 40:72], np.array(decoded))


def test_unreadable_picture_is_named_before_anything_is_written(tmp_path, run):
    picture(tmp_path / "some" / "a.png")
    (tmp_path / "some" / "z.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"z\.png"):
        run(tmp_path / "some")
    assert not (tmp_path / "out").exists()


def test_nothing_to_reconstruct(tmp_path, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no pictures"):
        run(tmp_path / "empty")
    with pytest.raises(BadInput, match="no picture or folder"):
        run(tmp_path / "missing.png")


def test_the_given_pictures_are_never_overwritten(tmp_path, run):
    for name in ("out/a.png", "out/b.jpg"):
        picture(tmp_path / name)
    before = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(BadInput, match=r"a\.png is one of the pictures and would be overwritten"):
        run(tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 2
    run(tmp_path / "out" / "b.jpg")  # its reconstruction is b.png
    assert (tmp_path / "out" / "b.png").is_file()

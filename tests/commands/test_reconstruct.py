import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.cli import main
from alitok.commands import reconstruct
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.images import to_uint8


@pytest.fixture
def run(tmp_path, golden, small_tokenizer_block):
    block = small_tokenizer_block(2)
    save_artifact(tmp_path / "tokenizer", block, golden.randomize(build(block)), {"kind": "tokenizer"})

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


@pytest.fixture
def any_length(tmp_path, golden, small_tokenizer_block) -> Path:
    """The artifact of a tokenizer that decodes the first tokens of its 21."""
    block = small_tokenizer_block(2)
    block["init_args"]["bottleneck"] = {
        "class_path": "alitok.ideas.nested_dropout.NestedDropout",
        "init_args": {"code_dim": 8},
    }
    save_artifact(tmp_path / "any", block, golden.randomize(build(block)), {"kind": "tokenizer"})
    return tmp_path / "any"


def reconstruct_by(tokenizer: Path, out: Path, *words: str) -> None:
    main(["reconstruct", "--tokenizer", str(tokenizer), *words, "--out", str(out)])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_first_tokens_only(tmp_path, any_length):
    picture(tmp_path / "some" / "a.png", size=(32, 32))
    given = str(tmp_path / "some" / "a.png")
    reconstruct_by(any_length, tmp_path / "four", given, "--keep", "4")
    tokenizer = load_tokenizer(any_length)
    images = torch.from_numpy(pixels(tmp_path / "some" / "a.png")).permute(2, 0, 1)[None] / 255
    expected = to_uint8(tokenizer.decode(tokenizer.encode(images)[:, :4]), "round")[0].permute(1, 2, 0)
    assert np.array_equal(pixels(tmp_path / "four" / "a.png"), expected.numpy())
    assert not (tmp_path / "four" / "tokens.png").exists()
    reconstruct_by(any_length, tmp_path / "all", given, "--keep", "21")
    reconstruct_by(any_length, tmp_path / "plain", given)
    for name in ("a.png", "grid.png"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert (tmp_path / "four" / "a.png").read_bytes() != (tmp_path / "all" / "a.png").read_bytes()


def test_pictures_and_psnr_by_tokens_kept(tmp_path, any_length, capsys):
    for index in range(9):
        picture(tmp_path / "some" / f"p{index}.png", size=(32, 32))
    reconstruct_by(any_length, tmp_path / "out", str(tmp_path / "some"), "--keep", "powers")
    content = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert content["pictures"] == 9
    assert list(content["psnr"]) == ["1", "2", "4", "8", "16", "21"]
    tokenizer = load_tokenizer(any_length)
    images = torch.from_numpy(pixels(tmp_path / "some" / "p0.png")).permute(2, 0, 1)[None] / 255  # all nine are alike
    ids = tokenizer.encode(images)
    for count, value in content["psnr"].items():
        decoded = tokenizer.decode(ids[:, : int(count)]).clamp(0, 1)
        assert value == pytest.approx(10 * np.log10(1 / float((decoded - images).square().mean())), abs=1e-3)
    grid = pixels(tmp_path / "out" / "tokens.png")
    cell = 4 * 32 + 2  # enlarged, as there are titles
    assert grid.shape == (cell // 4 + 8 * cell + 2, 7 * cell + 2, 3)  # eight rows, six counts and the original
    row = grid[cell // 4 + cell + 2 :][: 4 * 32 : 4]  # the first row's upper edge may have ink of the titles
    kept, original = (row[:, column * cell + 2 :][:, : 4 * 32 : 4] for column in (5, 6))
    assert np.array_equal(original, pixels(tmp_path / "some" / "p1.png"))
    assert np.array_equal(kept, pixels(tmp_path / "out" / "p1.png"))
    assert "tokens kept" in capsys.readouterr().out
    reconstruct_by(any_length, tmp_path / "some-counts", str(tmp_path / "some"), "--keep", "8, 2,8")
    assert list(json.loads((tmp_path / "some-counts" / "tokens.json").read_text())["psnr"]) == ["2", "8"]


def test_the_grid_of_tokens_overwrites_no_picture(tmp_path, any_length, capsys):
    picture(tmp_path / "out" / "tokens.png")
    before = (tmp_path / "out" / "tokens.png").read_bytes()
    with pytest.raises(SystemExit) as ended:
        reconstruct_by(any_length, tmp_path / "out", str(tmp_path / "out"), "--keep", "powers")
    assert ended.value.code == 2
    assert "tokens.png is one of the pictures and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "out" / "tokens.png").read_bytes() == before


@pytest.mark.parametrize("keep", ["0", "-3", "22", "some", "1,,2", "2.5", "", "4,99"])
def test_bad_counts_of_tokens_are_one_sentence(tmp_path, any_length, capsys, keep):
    picture(tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        reconstruct_by(any_length, tmp_path / "out", str(tmp_path / "a.png"), f"--keep={keep}")
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("alitok: ")
    assert "\n" not in error
    assert "1 to 21" in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_needs_all_tokens_refuses_fewer(tmp_path, artifacts, capsys):
    picture(tmp_path / "a.png")
    for keep in ("16", "powers"):
        with pytest.raises(SystemExit) as ended:
            reconstruct_by(artifacts / "tokenizer", tmp_path / "out", str(tmp_path / "a.png"), "--keep", keep)
        assert ended.value.code == 2
        assert "decodes all 21 tokens, not the first 1" in capsys.readouterr().err
    reconstruct_by(artifacts / "tokenizer", tmp_path / "out", str(tmp_path / "a.png"), "--keep", "21")
    assert (tmp_path / "out" / "a.png").exists()

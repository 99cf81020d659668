"""`alitok sample`: the three forms of its output, which images it draws, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from alitok.artifacts.folder import load_generator, load_tokenizer
from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.evaluation.quantise import to_uint8
from alitok.sampling.images import sample_images


def sample(artifacts: Path, out: Path, *more: object, tokenizer: str = "tokenizer") -> None:
    words = ["sample", "--generator", artifacts / "generator", "--tokenizer", artifacts / tokenizer, "--out", out]
    run([str(word) for word in [*words, *more]])


def pixels(path: Path) -> NDArray[np.uint8]:
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


def same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Equal but for the rounding of matrix products, which a truncated value may turn into one grey level."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


def test_grid_with_titles(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(artifacts, tmp_path / "grid.png", "--classes", "star,0", "--per-class", 3)
    assert "6 images" in capsys.readouterr().out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 34 + 2, 34 // 4 + 3 * 34 + 2)  # a column for each class under its title
        shown = np.asarray(grid.convert("RGB"))
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    images = torch.cat([images for *_, images in sample_images(generator, tokenizer, [2, 0] * 3, seed=5)])
    third = shown[8 + 2 + 34 : 8 + 34 + 34, 2:34]
    assert int(np.abs(third.astype(int) - (images[2] * 255).permute(1, 2, 0).numpy()).max()) <= 1
    assert (shown[:8] < 128).any()  # the titles' ink


def test_npz_holds_the_whole_count_with_classes_cycling(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.npy").write_bytes(b"mine")
    sample(artifacts, tmp_path / "samples.npz", "--count", 7, "--batch", 3)
    array = pixels(tmp_path / "samples.npz")
    assert (array.dtype, array.shape) == (np.uint8, (7, 32, 32, 3))
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    drawn = sample_images(generator, tokenizer, [0, 1, 2, 0, 1, 2, 0], guidance=3.0, power=2.0, seed=5)
    expected = torch.cat([to_uint8(images) for *_, images in drawn]).permute(0, 2, 3, 1).numpy()
    assert same(array, expected)
    assert len(np.unique(array.reshape(7, -1), axis=0)) == 7
    sample(artifacts, tmp_path / "again.npz", "--count", 7, "--batch", 8)
    assert same(array, pixels(tmp_path / "again.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz", "samples.npy", "samples.npz"]
    assert (tmp_path / "samples.npy").read_bytes() == b"mine"


def test_folder_of_png_holds_the_same_images(artifacts: Path, tmp_path: Path) -> None:
    sample(artifacts, tmp_path / "samples.npz", "--count", 5)
    sample(artifacts, tmp_path / "pictures", "--count", 5, "--batch", 2)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"{index:06d}.png" for index in range(5)]
    images = np.stack([np.asarray(Image.open(tmp_path / "pictures" / name)) for name in names])
    assert same(images, pixels(tmp_path / "samples.npz"))


def test_guidance_power_and_seed_come_from_the_card(artifacts: Path, tmp_path: Path) -> None:
    def draw(name: str, *more: object) -> NDArray[np.uint8]:
        sample(artifacts, tmp_path / f"{name}.npz", "--count", 3, *more)
        return pixels(tmp_path / f"{name}.npz")

    card = draw("card")
    assert same(card, draw("given", "--guidance", 3, "--power", 2, "--seed", 5))
    assert not same(card, draw("none", "--guidance", 0))
    assert not same(card, draw("power", "--power", 0.5))
    assert not same(card, draw("seed", "--seed", 6))


@pytest.mark.parametrize(
    ("out", "arguments", "words"),
    [
        ("out.png", ["--classes", "strar"], "'strar'.*0..2.*'star'"),
        ("out.png", ["--classes", "3"], "No class '3'"),
        ("out.npz", ["--count", 0], "--count must be at least 1"),
        ("out.npz", ["--batch", 0], "--batch must be at least 1"),
        ("out.npz", ["--count", 3, "--temperature", 0], "temperature must be above 0"),
        ("out.jpg", ["--count", 3], r"out\.jpg must be a \.png grid"),
        ("full", ["--count", 3], "full exists and is no empty folder"),
        ("full/note", ["--count", 3], "note exists and is no empty folder"),
        ("full/note/out.npz", ["--count", 3], "Cannot write"),
    ],
)
def test_refusals_leave_nothing(artifacts: Path, tmp_path: Path, out: str, arguments: list[object], words: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("kept")
    with pytest.raises(BadInput, match=words):
        sample(artifacts, tmp_path / out, *arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "note"]
    assert (tmp_path / "full" / "note").read_text() == "kept"


def test_a_tokenizer_of_other_tokens_is_refused(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="trained on tokens of tokenizer"):
        sample(artifacts, tmp_path / "out.npz", "--count", 3, tokenizer="stranger")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_command_leaves_nothing(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **more: object) -> object:
        yield [0], None, torch.zeros(1, 3, 32, 32)
        raise KeyboardInterrupt

    monkeypatch.setattr("alitok.sampling.images.sample_images", interrupted)
    for name in ("a.png", "a.npz", "a"):
        with pytest.raises(KeyboardInterrupt):
            sample(artifacts, tmp_path / name, "--count", 3)
    assert not any(tmp_path.iterdir())

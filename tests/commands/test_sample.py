"""`alitok sample`: the three forms of its output, which images it draws, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import alitok
from alitok.artifacts.folder import load_generator, load_tokenizer, read_card, save_artifact
from alitok.cli import run
from alitok.commands.sample import class_numbers
from alitok.common.build import build
from alitok.common.compiler import has_compiler
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.evaluation.sidecar import read_sidecar
from alitok.sampling.images import ImageSampler, sample_images


def sample(artifacts: Path, out: Path, *more: object, tokenizer: str = "tokenizer") -> None:
    words = ["sample", "--generator", artifacts / "generator", "--tokenizer", artifacts / tokenizer, "--out", out]
    run([str(word) for word in [*words, *more]])


def pixels(path: Path) -> NDArray[np.uint8]:
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


def same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Equal but for the rounding of matrix products, which a truncated value may turn into one gray level."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


def test_grid_with_titles(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(artifacts, tmp_path / "grid.png", "--classes", "star,0", "--per-class", 3)
    assert "6 images" in capsys.readouterr().out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 130 + 2, 130 // 4 + 3 * 130 + 2)  # a column for each class, enlarged, under its title
        shown = np.asarray(grid.convert("RGB"))
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    images = torch.cat(
        [images for *_, images in sample_images(generator, tokenizer, [2, 0] * 3, Draw.chosen(generator.card, seed=5))]
    )
    third = shown[32 + 2 + 130 : 32 + 130 + 130, 2:130][::4, ::4]
    assert int(np.abs(third.astype(int) - (images[2] * 255).permute(1, 2, 0).numpy()).max()) <= 1
    assert (shown[:32] < 128).any()  # the titles' ink


def test_titles_only_over_columns_of_one_class(
    artifacts: Path, tmp_path: Path, golden: Any, small_generator_block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[Any] = []
    monkeypatch.setattr("alitok.common.images.save_grid", lambda images, path, *rest: grids.append(rest))
    block = small_generator_block(num_classes=12)
    card = {"kind": "generator", "tokenizer": read_card(artifacts / "tokenizer")["digest"]}
    save_artifact(tmp_path / "generator", block, golden.randomize(build(block)), card)
    words = ["sample", "--generator", tmp_path / "generator", "--tokenizer", artifacts / "tokenizer"]
    for count in (7, 13):
        run([str(word) for word in [*words, "--count", count, "--out", tmp_path / "grid.png"]])
    assert grids == [(7, [str(label) for label in range(7)]), (10, None)]


def test_npz_holds_the_whole_count_with_classes_cycling(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.npy").write_bytes(b"mine")
    sample(artifacts, tmp_path / "samples.npz", "--count", 7, "--batch", 3)
    array = pixels(tmp_path / "samples.npz")
    assert (array.dtype, array.shape) == (np.uint8, (7, 32, 32, 3))
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    drawn = sample_images(generator, tokenizer, [0, 1, 2, 0, 1, 2, 0], Draw(3.0, 2.0, seed=5))
    expected = torch.cat([to_uint8(images) for *_, images in drawn]).permute(0, 2, 3, 1).numpy()
    assert same(array, expected)
    assert len(np.unique(array.reshape(7, -1), axis=0)) == 7
    sample(artifacts, tmp_path / "again.npz", "--count", 7, "--batch", 8)
    assert same(array, pixels(tmp_path / "again.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("again.json", "again.npz", "samples.json", "samples.npy", "samples.npz")
    ]
    assert (tmp_path / "samples.npy").read_bytes() == b"mine"


def test_folder_of_png_holds_the_same_images(artifacts: Path, tmp_path: Path) -> None:
    sample(artifacts, tmp_path / "samples.npz", "--count", 5)
    sample(artifacts, tmp_path / "pictures", "--count", 5, "--batch", 2)
    names = sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
    assert names == [f"{index:06d}.png" for index in range(5)]
    told = json.loads((tmp_path / "pictures" / "samples.json").read_text())
    other = json.loads((tmp_path / "samples.json").read_text())
    assert told.pop("drawn_with") == [{"batch": 2, "device": "cpu"}]
    assert other.pop("drawn_with") == [{"batch": 5, "device": "cpu"}]
    assert told == other
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


def test_names_of_classes_may_contain_commas() -> None:
    names = ["tench, Tinca tinca", "goldfish", "hen", "hen, chick"]
    for text, numbers in (
        ("tench, Tinca tinca", [0]),
        ("goldfish,tench,Tinca tinca,2", [1, 0, 2]),
        ("hen, chick, hen", [3, 2]),
        ("hen,goldfish,hen", [2, 1, 2]),
    ):
        assert class_numbers(text, names) == numbers
    with pytest.raises(BadInput, match="No class 'tench'"):
        class_numbers("hen, tench", names)


@pytest.mark.parametrize(
    ("out", "arguments", "words"),
    [
        ("out.png", ["--classes", "strar"], "'strar': there are circle, square, star; did you mean 'star'"),
        ("out.png", ["--classes", "3"], "No class '3'"),
        ("out.npz", ["--count", 0], "--count must be at least 1"),
        ("out.npz", ["--batch", 0], "--batch must be at least 1"),
        ("out.npz", ["--batch", "many"], "--batch must be at least 1, or auto"),
        ("out.npz", ["--count", 3, "--temperature", 0], "temperature must be above 0"),
        ("out.npz", ["--count", 3, "--temperature", "inf"], "temperature must be above 0 and finite"),
        ("out.npz", ["--count", 3, "--schedule", "cosine"], "'cosine'.*did you mean 'power-cosine'"),
        ("out.npz", ["--count", 3, "--power", -1], "power must be above 0"),
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


def test_what_is_told_beside_the_images(artifacts: Path, tmp_path: Path) -> None:
    sample(artifacts, tmp_path / "a.npz", "--classes", "star,0", "--per-class", 2, "--schedule", "linear", "--seed", 7)
    told = read_sidecar(tmp_path / "a.npz", 4, 32)
    cards = {kind: read_card(artifacts / kind) for kind in ("generator", "tokenizer")}
    assert {kind: (told[kind]["name"], told[kind]["digest"]) for kind in cards} == {
        kind: (kind, card["digest"]) for kind, card in cards.items()
    }
    expected = {
        "count": 4,
        "guidance": 3.0,
        "power": 2.0,
        "schedule": "linear",
        "temperature": 1.0,
        "seed": 7,
        "classes": [2, 0, 2, 0],
        "num_classes": 3,
        "class_names": ["circle", "square", "star"],
        "quantisation": "truncated",
        "image_size": 32,
        "alitok": alitok.__version__,
    }
    assert {key: told[key] for key in expected} == expected
    sample(artifacts, tmp_path / "b.npz", "--count", 4)
    assert read_sidecar(tmp_path / "b.npz", 4, 32)["classes"] == "cycling"


def test_a_finished_command_is_not_done_again(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / "a.npz", tmp_path / "v1.0"]
    for out in outs:
        sample(artifacts, out, "--count", 3)
    monkeypatch.setattr(ImageSampler, "sample", None)
    for out in outs:
        sample(artifacts, out, "--count", 3, "--batch", 2)
        assert "3 images, all there already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.png", "a.npz", "a"])
def test_an_interrupted_command_goes_on_where_it_stopped(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    draw, wanted = ImageSampler.sample, []

    def stopped_after(most: int) -> Any:
        def stopping(self: ImageSampler, batches: Any, *arguments: Any) -> Any:
            batches = list(batches)
            wanted.append([list(indices) for indices, _ in batches])
            yield from draw(self, batches[:most], *arguments)
            if len(batches) > most:
                raise KeyboardInterrupt

        return stopping

    monkeypatch.setattr(ImageSampler, "sample", stopped_after(2))
    with pytest.raises(KeyboardInterrupt):
        sample(artifacts, tmp_path / name, "--count", 7, "--batch", 2)
    assert [path.name for path in tmp_path.iterdir()] == [f".{name}.partial"]
    with pytest.raises(BadInput, match=r"unfinished set of samples with other settings \(seed 5, not 6\)"):
        sample(artifacts, tmp_path / name, "--count", 7, "--seed", 6)
    sample(artifacts, tmp_path / name, "--count", 7, "--batch", 2)
    assert wanted == [[[0, 1], [2, 3], [4, 5], [6]], [[4, 5], [6]]]
    assert (tmp_path / name).exists()
    assert not (tmp_path / f".{name}.partial").exists()
    if name == "a.npz":
        monkeypatch.setattr(ImageSampler, "sample", draw)
        sample(artifacts, tmp_path / "whole.npz", "--count", 7, "--batch", 4)
        assert same(pixels(tmp_path / name), pixels(tmp_path / "whole.npz"))


def test_compiled_draws_the_same_or_says_that_there_is_no_compiler(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_compiler():
        sample(artifacts, tmp_path / "plain.npz", "--count", 3)
        sample(artifacts, tmp_path / "compiled.npz", "--count", 3, "--compile")
        assert same(pixels(tmp_path / "plain.npz"), pixels(tmp_path / "compiled.npz"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="needs a C"):
        sample(artifacts, tmp_path / "other.npz", "--count", 3, "--compile")
    assert not (tmp_path / "other.npz").exists()


def test_guidance_of_the_working_folder_by_its_class_path(artifacts: Path, tmp_path: Path) -> None:
    code = """from alitok.sampling.guidance import Linear


class Twice(Linear):
    def scale_at(self, positions, steps):
        return 2 * super().scale_at(positions, steps)
"""
    (tmp_path / "twice_guidance.py").write_text(code)
    words = ["-m", "alitok", "sample", "--generator", str(artifacts / "generator")]
    words += ["--tokenizer", str(artifacts / "tokenizer"), "--guidance", "2", "--count", "4", "--batch", "2"]
    for name, schedule in (("a", "twice_guidance.Twice"), ("b", "linear")):
        command = [sys.executable, *words, "--schedule", schedule, "--out", f"{name}.npz"]
        subprocess.run(command, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "a.json").read_text())["schedule"] == "twice_guidance.Twice"
    pixels = [np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "ab"]
    assert not np.array_equal(*pixels)


def test_drawing_pictures_imports_no_lightning(artifacts: Path, tmp_path: Path) -> None:
    words = ["sample", "--generator", str(artifacts / "generator"), "--tokenizer", str(artifacts / "tokenizer")]
    words += ["--classes", "0", "--out", str(tmp_path / "g.png")]
    code = f"import sys; from alitok.cli import main; main({words}); assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""`alitok tune-guidance`: what it measures, what it reuses, how sure it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alitok.artifacts.folder import load_generator, load_tokenizer
from alitok.cli import run
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.sampling import sets as sample_set
from alitok.sampling.images import ImageSampler, sample_images
from alitok.studies.processes import two_processes


@pytest.fixture(scope="module")
def place(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `classifier` and `reference.npz`: what the generator gives at scale 2, power 1."""
    folder = tmp_path_factory.mktemp("guidance")
    torch.manual_seed(0)
    Classifier(num_classes=4, width=4).save(folder / "classifier")
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    labels = [index % 3 for index in range(120)]
    drawn = sample_images(generator, tokenizer, labels, Draw(2.0, seed=99))
    np.savez(folder / "reference.npz", arr_0=torch.cat([to_uint8(x) for *_, x in drawn]).permute(0, 2, 3, 1).numpy())
    return folder


def search(artifacts: Path, place: Path, out: Path, *more: object) -> None:
    words = ["tune-guidance", "--generator", artifacts / "generator", "--tokenizer", artifacts / "tokenizer"]
    words += ["--reference", place / "reference.npz", "--extractor", place / "classifier", "--out", out]
    run([str(word) for word in [*words, *more]])


def tune(artifacts: Path, place: Path, out: Path, *more: object) -> dict[str, Any]:
    search(artifacts, place, out, *more)
    return json.loads((out / "guidance.json").read_text())


def test_search_and_what_it_reuses(
    artifacts: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[int] = []
    draw = ImageSampler.sample

    def counting(self: ImageSampler, *arguments: Any, **named: Any) -> Any:
        for batch in draw(self, *arguments, **named):
            drawn.extend(batch[0])
            yield batch

    monkeypatch.setattr(ImageSampler, "sample", counting)
    grid = ("--scales", "2,20", "--powers", "1,0.3", "--refine", 0, "--count", 60, "--batch", 25)
    found = tune(artifacts, place, tmp_path / "a", *grid)
    assert len(drawn) == 4 * 60
    results = found["results"]
    assert {(row["scale"], row["power"]) for row in results} == {(2, 1), (2, 0.3), (20, 1), (20, 0.3)}
    assert [row["fid"] for row in results] == sorted(row["fid"] for row in results)
    assert found["best"] == results[0]
    assert found["best"]["scale"] == 2
    assert (found["best"]["behind"], found["best"]["behind_error"]) == (0, 0)
    assert all(row["fid_error"] > 0 for row in results)
    worst = results[-1]
    assert worst["behind"] == pytest.approx(worst["fid"] - results[0]["fid"])
    assert worst["behind"] > 2 * worst["behind_error"]
    assert worst not in found["undecided"]
    assert "Best: scale 2" in capsys.readouterr().out

    # the same again draws nothing; a larger count, what is new; a part that was lost, that part
    assert tune(artifacts, place, tmp_path / "a", *grid) == found
    assert len(drawn) == 4 * 60
    tune(artifacts, place, tmp_path / "a", *grid, "--count", 70)
    assert drawn[240:] == list(range(60, 70)) * 4
    next(iter((tmp_path / "a").glob("power-cosine-2/power-1/00000025-*.npz"))).unlink()
    assert tune(artifacts, place, tmp_path / "a", *grid) == found
    assert drawn[280:] == list(range(25, 50))

    with pytest.raises(BadInput, match=r"is a search with other settings \(seed 0, not 1\)"):
        tune(artifacts, place, tmp_path / "a", *grid, "--seed", 1)


def test_fid_is_that_of_the_images(artifacts: Path, place: Path, tmp_path: Path) -> None:
    found = tune(artifacts, place, tmp_path, "--schedule", "constant", "--scales", "3", "--refine", 0, "--count", 40)
    assert [(row["scale"], row["power"]) for row in found["results"]] == [(3, None)]
    generator, tokenizer = load_generator(artifacts / "generator"), load_tokenizer(artifacts / "tokenizer")
    extractor = ClassifierExtractor(Classifier.load(place / "classifier"), "classifier")
    sides = [FeatureStatistics(extractor.num_features) for _ in range(2)]
    labels = [index % 3 for index in range(40)]
    for *_, images in sample_images(generator, tokenizer, labels, Draw(3.0, schedule="constant")):
        sides[0].update(extractor(to_uint8(images)).pooled)
    with np.load(place / "reference.npz") as file:
        sides[1].update(extractor(torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)).pooled)
    assert found["best"]["fid"] == pytest.approx(frechet_distance(*sides), rel=1e-3)


def test_refinement_goes_halfway_to_the_neighbors(artifacts: Path, place: Path, tmp_path: Path) -> None:
    found = tune(artifacts, place, tmp_path, "--scales", "2,8,32", "--powers", "1", "--refine", 1, "--count", 30)
    settings = {(row["scale"], row["power"]) for row in found["results"]}
    assert settings > {(2, 1), (8, 1), (32, 1)}
    new = settings - {(2, 1), (8, 1), (32, 1)}
    assert new in (
        {(1, 1), (4, 1), (2, 0.5), (2, 2)},  # the best was scale 2,
        {(4, 1), (16, 1), (8, 0.5), (8, 2)},  # 8
        {(16, 1), (128, 1), (32, 0.5), (32, 2)},  # or 32
    )


SHARED = ("--schedule", "constant", "--scales", "2,9", "--refine", 0, "--count", 40)


def of_one_process(rank: int, artifacts: str, place: str, out: str) -> None:
    sample_set.largest_batch = lambda *_: 9 - rank  # devices of other memory
    torch.distributed.init_process_group("gloo")
    search(Path(artifacts), Path(place), Path(out), *SHARED)


def test_two_processes_find_what_one_finds(artifacts: Path, place: Path, tmp_path: Path) -> None:
    two_processes(of_one_process, str(artifacts), str(place), str(tmp_path / "two"))
    alone = tune(artifacts, place, tmp_path / "one", *SHARED)
    shared = json.loads((tmp_path / "two" / "guidance.json").read_text())
    for one, two in zip(alone["results"], shared["results"], strict=True):
        assert (one.pop("power"), two.pop("power")) == (None, None)
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scales", "2,x"], "should be numbers"),
        (["--powers", "0"], "above 0"),
        (["--count", 19], "--count must be at least 20"),
        (["--refine", -1], "--refine must be 0"),
        (["--schedule", "linea"], "did you mean 'linear'"),
        (["--reference", "none.npz"], "does not exist"),
        (["--json", __file__ + "/x.json"], "Cannot write"),
    ],
)
def test_refusals(artifacts: Path, place: Path, tmp_path: Path, arguments: list[object], words: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("kept")
    with pytest.raises(BadInput, match=words):
        tune(artifacts, place, tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BadInput, match="it is not a search"):
        tune(artifacts, place, tmp_path / "mine")

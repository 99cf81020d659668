"""The whole line at the smallest size: two stages, tokens, generator, samples, measures, report."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import tiny

from alitok.cli import main
from alitok.data.reading import read_all
from alitok.data.shapes import Shapes
from alitok.evaluation.extractors import open_extractor
from alitok.evaluation.fid import FeatureStatistics
from alitok.reports.curves import read_curves
from alitok.training.launch import run

QUICK = ["--trainer.val_check_interval", "2", "--trainer.callbacks.checkpoint.every_n_train_steps", "2"]
STEPS = {
    "tokenizer-stage1": ["--model.phases.continuous.steps", "2", "--model.phases.main.steps", "2"],
    "tokenizer-stage2": ["--model.phases.main.steps", "2"],
    "generator": ["--model.phases.main.steps", "2"],
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    configs, out = folder / "configs", folder / "out"
    configs.mkdir()
    for name, steps in STEPS.items():
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(tiny(name, out, *QUICK, *steps)))
    words = ["demo", "--out", str(out), "--config", str(configs), "--images", "20", "--samples", "20", "--minutes", "0"]
    for _ in range(2):  # the second time everything but the report is there already
        main([*words, "--classifier-steps", "5", "--precision", "32-true"])
    return out


def test_the_numbers_that_programs_read(demo: Path) -> None:
    numbers = json.loads((demo / "report.json").read_text())
    shares = ("codebook_usage", "ar_accuracy", "class_agreement")
    assert all(0 <= numbers[name] <= 1 for name in shares)
    assert all(numbers[name] > 0 for name in ("psnr_stage1", "psnr_stage2", "fid", "fid_real", "peak_memory_bytes"))
    assert set(numbers["seconds"]) == {
        "classifier",
        "stage1",
        "stage2",
        "tokenise",
        "generator",
        "samples and measures",
    }


def test_what_a_person_looks_at(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 60
    for name in ("samples.png", "stage1/curves.png", "stage1/pictures", "generator/pictures", "tokens/alitok.json"):
        assert (demo / name).exists(), name


def test_artifacts_belong_together(demo: Path) -> None:
    cards = {
        n: json.loads((demo / n / "artifact" / "card.json").read_text()) for n in ("stage1", "stage2", "generator")
    }
    assert cards["stage1"]["digest"] == cards["stage2"]["digest"] == cards["generator"]["tokenizer"]
    assert cards["generator"]["class_names"] == cards["stage1"]["class_names"]


def test_more_samples_by_name(demo: Path, tmp_path: Path) -> None:
    artifacts = ["--generator", str(demo / "generator/artifact"), "--tokenizer", str(demo / "stage2/artifact")]
    main(["sample", *artifacts, "--classes", "star,heart", "--per-class", "1", "--out", str(tmp_path / "stars.png")])
    assert (tmp_path / "stars.png").is_file()


def test_validate_measures_fid_and_inception_score_by_callback(demo: Path) -> None:
    extractor = open_extractor(str(demo / "classifier"), "cpu")
    reference = FeatureStatistics(extractor.num_features)
    reference.update(extractor(read_all(Shapes("val", 32, count=30), 32)[0]).pooled)
    reference.save(demo / "reference.npz")

    def measured(batch: int) -> dict[str, float]:
        arguments = {
            "tokenizer": str(demo / "stage2" / "artifact"),
            "extractor": str(demo / "classifier"),
            "reference": str(demo / "reference.npz"),
            "count": 12,
            "batch": batch,
        }
        block = {"class_path": "alitok.callbacks.metrics.Generation", "init_args": arguments}
        run("validate", tiny("generator", demo, "--trainer.callbacks.generation", json.dumps(block)))
        return {name: points[-1][1] for name, points in read_curves(demo / "generator").items()}

    whole, parts = measured(12), measured(5)
    assert whole["val/fid"] > 0
    assert whole["val/inception_score"] >= 1
    for name in ("val/fid", "val/inception_score"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3)

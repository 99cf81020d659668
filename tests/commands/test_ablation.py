"""`alitok ablation`: one change a rung, a row each, and a second start that does only what is missing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.io import write_png

from alitok.cli import run
from alitok.commands import ablation
from alitok.common.errors import BadInput
from alitok.networks.classifier import Classifier
from alitok.reports.runs import differences, open_runs
from alitok.studies.ladder_measures import last_tenth
from alitok.studies.ladder_settings import LADDER, plan

KEYS = [
    *("variant", "seed", "psnr", "rfid", "codebook_usage", "ar_accuracy", "ar_loss", "gfid", "gfid_guided"),
    *("steps", "seconds"),
]
DEFINE = {
    "tokenizer_width": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "codebook_size": 32,
    "code_dim": 4,
    "tokenizer_batch": 8,
    "continuous_steps": 1,
    "tokenizer_steps": 2,
    "stage2_steps": 2,
    "generator_width": 32,
    "generator_depth": 1,
    "generator_batch": 8,
    "generator_steps": 2,
    "checkpoint_every": 2,
}
SMALL = ["--pictures", "20", "--samples", "20", "--tuning-samples", "20", "--guidance", "2,3"]
SMALL += ["--classifier-steps", "3", "--precision", "32-true"]


def words(data: Path, out: Path, *more: str) -> list[str]:
    sets = [word for key, value in DEFINE.items() for word in ("--set", f"{key}={value}")]
    return ["ablation", "--data", str(data), "--out", str(out), *sets, *SMALL, *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of noise to learn from and 20 to judge by, in two classes."""
    folder = tmp_path_factory.mktemp("data")
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 60), ("val", 20)):
        for index in range(count):
            place = folder / split / f"class-{index % 2}"
            place.mkdir(parents=True, exist_ok=True)
            image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=random)
            write_png(image, str(place / f"{index}.png"))
    return folder


@pytest.fixture(scope="module")
def ladder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rungs, the second of which shares the first's tokens and generator."""
    out = tmp_path_factory.mktemp("ladder") / "out"
    results = str(out.parent / "docs" / "ladder")
    run(words(data, out, "--variants", "auxiliary,two-stage", "--seeds", "3", "--results", results))
    return out


def test_rows_have_the_keys_that_programs_read(ladder: Path) -> None:
    content = json.loads((ladder.parent / "docs" / "ladder.json").read_text())
    rows = content["rows"]
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert [(row["variant"], row["seed"], row["steps"]) for row in rows] == [("auxiliary", 3, 5), ("two-stage", 3, 7)]
    for row in rows:
        assert 0 <= row["ar_accuracy"] <= 1
        assert 0 < row["codebook_usage"] <= 1
        assert all(math.isfinite(row[key]) and row[key] >= 0 for key in KEYS[1:])
    # the same tokens and generator: predicted alike, drawn differently
    assert rows[0]["ar_loss"] == rows[1]["ar_loss"]
    assert rows[0]["codebook_usage"] == rows[1]["codebook_usage"]
    assert rows[0]["psnr"] != rows[1]["psnr"]
    assert content["comparable"] is False
    assert len(content["reasons"]) == 2
    assert 0 <= content["extractor"]["accuracy"] <= 1
    details = content["details"]["two-stage-3"]
    assert len(details["accuracy_by_position"]) == 72
    assert set(details["gfid_by_guidance"]) == {"2", "3"}
    assert 0 <= details["noisy_accuracy"] <= 1
    assert 0 < details["entropy_per_picture"] < 72 * math.log(32) + 5  # the estimate may be too high by its correction
    assert details["entropy_per_picture"] == pytest.approx(sum(details["entropy_by_position"]))
    assert details["image_accuracy"] == pytest.approx(sum(details["accuracy_by_position"][-64:]) / 64)
    assert details["explained_nats"] == details["entropy_per_picture"] - details["nats_per_picture"]
    assert min(details["gfid_error"], details["gfid_guided_error"]) > 0
    assert details["last_tenth"] is None  # there was one validation
    assert details["psnr_by_first_tokens"].keys() >= {"0", "72"}
    # a causal decoder makes nothing of a token for the patches before it; the second stage's is not causal
    causal, both = content["details"]["auxiliary-3"]["reach"], details["reach"]
    for reach in (causal, both):
        assert reach["own"] + reach["before"] + reach["after"] == pytest.approx(1, abs=1e-4)
    assert causal["before"] < 1e-9 < both["before"]
    for sheet in ("first-tokens", "samples"):
        assert (ladder.parent / "docs" / f"ladder-{sheet}.png").stat().st_size > 10_000


def test_what_a_person_looks_at(ladder: Path) -> None:
    text = (ladder.parent / "docs" / "ladder.md").read_text()
    assert text.count("| auxiliary | 1 |") == 2
    assert "| own patch (%) |" in text
    assert "Not comparable with published numbers" in text
    assert "](ladder.png)" in text
    for name in ("docs/ladder.png", "out/compare.html", "out/seed-3/two-stage/samples.png"):
        assert (ladder.parent / name).stat().st_size > 1000, name
    assert (ladder / "seed-3" / "auxiliary" / "first-tokens.png").is_file()


def test_other_patches_and_a_perceptual_loss_by_a_classifier_that_does_not_judge(data: Path, tmp_path: Path) -> None:
    more = ["--variants", "auxiliary", "--seeds", "1", "--perceptual", "--set", "patch_size=8"]
    run(words(data, tmp_path / "out", *more))
    rung = tmp_path / "out" / "seed-1" / "auxiliary"
    config = yaml.safe_load((rung / "stage1" / "config.yaml").read_text())
    features = config["model"]["init_args"]["losses"]["features"]["init_args"]
    assert features == {"weights": str(tmp_path / "out" / "loss-classifier"), "weight": 0.02}
    losing, judging = (Classifier.load(tmp_path / "out" / name) for name in ("loss-classifier", "classifier"))
    assert losing.width < judging.width
    row, details = (json.loads((rung / f"{name}.json").read_text()) for name in ("row", "details"))
    assert row["variant"] == "auxiliary"
    assert len(details["accuracy_by_position"]) == 4 + 16


def test_a_second_start_does_only_what_is_missing(
    ladder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ladder / "seed-3"
    before = (folder / "auxiliary" / "row.json").read_text()
    stage1 = (folder / "auxiliary" / "stage1" / "artifact" / "card.json").stat().st_mtime_ns
    (folder / "two-stage" / "row.json").unlink()  # as if stopped while it was measured
    measured: list[str] = []
    plain = ablation.rung

    def rung(variant: str, *rest: Any) -> None:
        measured.append(variant)
        plain(variant, *rest)

    monkeypatch.setattr(ablation, "rung", rung)
    run(words(data, ladder, "--variants", "auxiliary,two-stage", "--seeds", "3"))
    assert measured == ["two-stage"]
    assert (folder / "auxiliary" / "row.json").read_text() == before
    assert (folder / "auxiliary" / "stage1" / "artifact" / "card.json").stat().st_mtime_ns == stage1
    assert "is finished" in capsys.readouterr().out
    assert len(json.loads((ladder / "ablation.json").read_text())["rows"]) == 2


def test_rows_of_another_classifier_are_measured_again_and_not_trained(
    ladder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ladder / "seed-3" / "auxiliary" / "row.json"
    before = row.read_text()
    details = json.loads(row.with_name("details.json").read_text())
    row.with_name("details.json").write_text(json.dumps(details | {"extractor": "another"}))
    run(words(data, ladder, "--variants", "auxiliary,two-stage", "--seeds", "3"))
    assert "is finished" in capsys.readouterr().out
    assert json.loads(row.with_name("details.json").read_text())["extractor"] == details["extractor"]
    assert row.read_text() == before


def test_rows_of_an_earlier_version_are_shown(ladder: Path, data: Path, tmp_path: Path) -> None:
    """Their details lack what was measured later."""
    file = ladder / "seed-3" / "auxiliary" / "details.json"
    details = json.loads(file.read_text())
    later = ("image_accuracy", "noisy_accuracy", "extractor", "command", "machine")
    earlier = {key: details[key] for key in details if key not in later}
    file.write_text(json.dumps(earlier))
    try:
        results = ["--results", str(tmp_path / "ladder")]
        run(words(data, ladder, "--variants", "auxiliary,two-stage", "--seeds", "3", *results))
    finally:
        file.write_text(json.dumps(details))
    (line,) = [text for text in (tmp_path / "ladder.md").read_text().splitlines() if "| auxiliary | 1 |" in text][1:]
    assert [line.split(" | ")[place] for place in (2, 6)] == ["—", "—"]


def test_other_settings_need_another_folder(ladder: Path, data: Path) -> None:
    with pytest.raises(BadInput, match=r"is a ladder with other settings \(define "):
        run(words(data, ladder, "--set", "generator_steps=4", "--samples", "30"))


def test_rungs_differ_by_what_their_name_says(ladder: Path) -> None:
    first, second = open_runs([ladder / "seed-3" / "auxiliary", ladder / "seed-3" / "two-stage"])
    found = set(differences([first.parts["stage1"], second.parts["stage2"]]))
    assert {key for key in found if key.startswith("model.tokenizer.")} == {
        f"model.tokenizer.decoder.{name}" for name in ("causal", "buffer_tokens", "prefix_head", "drop_prefix")
    }


def test_what_the_last_tenth_gained() -> None:
    curves = {
        "val/token_accuracy": [(70, 0.1), (80, 0.2), (100, 0.6)],
        "val/token_nats": [(80, 3.0), (100, 2.0)],
    }
    assert last_tenth(curves) == {"accuracy": pytest.approx(0.2), "nats": pytest.approx(0.5)}
    assert last_tenth({**curves, "val/token_nats": [(95, 3.0), (100, 2.0)]}) is None


def test_plan_does_the_first_seed_first() -> None:
    work = plan(None, "0,1")
    assert work[:6] == [(name, 0) for name in LADDER]
    assert work[6:] == [(name, 1) for name in ("bidirectional", "causal", "auxiliary", "two-stage")]
    assert plan("causal,bidirectional", "5") == [("bidirectional", 5), ("causal", 5)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variants", "causl"], "did you mean 'causal'"),
        (["--variants", "two-stage"], "tokens of auxiliary"),
        (["--seeds", "0,x"], "whole numbers"),
        (["--set", "generator_step=3"], "did you mean 'generator_steps'"),
        (["--set", "generator_steps"], "KEY=VALUE"),
        (["--set", "patch_size=0"], r"\$\{div:1024,0\} cannot be calculated; .* a divisor other than 0"),
        (["--set", "image_size=big"], r"num_latents: \$\{mul:big,big\} cannot be calculated; give whole numbers"),
        (["--set", "patch_size=null"], "patch_size"),
        (["--set", "generator_steps=[1"], "no valid YAML"),
        (["--guidance", "a"], "--guidance takes numbers and commas"),
        (["--guidance", "3,-6"], "--guidance takes scales of 0 or more"),
        (["--guidance", "nan"], "--guidance takes scales of 0 or more"),
        (["--results", "/dev/null/ladder"], "Cannot write /dev/null/ladder.json"),
        (["--samples", "3"], "--samples"),
        (["--config", "nowhere"], "is missing"),
    ],
)
def test_wrong_usage(more: list[str], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        run(words(data, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_ladder_for_two_seeds(data: Path, tmp_path: Path) -> None:
    run(words(data, tmp_path, "--seeds", "0,1"))
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert sorted((row["variant"], row["seed"]) for row in rows) == sorted(plan(None, "0,1"))
    page = (tmp_path / "compare.html").read_text()
    assert "10 runs of 6 configurations" in page

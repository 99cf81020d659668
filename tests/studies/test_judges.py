"""What a trial measures of generators."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DEMO

from alitok.artifacts.folder import load_generator, save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.data.shapes import Shapes
from alitok.evaluation.classifier import train_and_save
from alitok.studies import small

PROBABLE = ["--trainer.callbacks.samples", "null", "--trainer.logger", "null", "--model.warmup_steps", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token cache, its tokenizer and a classifier."""
    folder = tmp_path_factory.mktemp("trial")
    images = torch.rand(20, 3, 64, 64).mul(255).byte()
    train_and_save(images, torch.arange(20) % 10, 10, folder / "judge", 2, width=4, batch=10)
    block = compose_run([DEMO / "tokenizer-stage1.yaml"])["model"]["init_args"]["tokenizer"]
    block = small._reduced(block)
    card = save_artifact(folder / "tokenizer", block, build(block), {"kind": "tokenizer"})
    config = small.small(compose_run([DEMO / "generator.yaml"], ["--define.run", str(folder)]))
    model = build(config["model"]["init_args"]["generator"])
    ids = small.random_ids(model.id_shape, 20, model.codebook_size)
    small.write_ids(folder / "tokens", ids, model, digest=card["digest"])
    (folder / "wide.yaml").write_text("model: {generator: {width: 48}}\n")
    return folder


def words(place: Path, out: Path, *more: str) -> list[str]:
    base = ["trial", "-c", str(DEMO / "generator.yaml"), "--idea", str(place / "wide.yaml"), "--out", str(out)]
    sizes = ["--model.generator.width", "32", "--model.generator.depth", "1", "--model.generator.heads", "2"]
    steps = ["--model.phases.main.steps", "2", "--data.global_batch", "8", "--define.cache", str(place / "tokens")]
    judge = ["--judge", str(place / "judge"), "--data", "shapes", "--tokenizer", str(place / "tokenizer")]
    return [*base, *sizes[2:], *steps, *PROBABLE, *judge, "--samples", "6", *more]


def test_generators_are_judged(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alitok.studies import judges

    monkeypatch.setattr(judges, "REFERENCE_PICTURES", 12)
    assert len(Shapes("train")) >= 12
    out = tmp_path / "trial"
    run(words(place, out, "--seeds", "0,1", "--guidance", "0,1.5"))
    rows = json.loads((out / "trial.json").read_text())["rows"]
    for row in rows:
        assert row["gfid_0"] > 0
        assert row["gfid_1.5"] > 0
        assert row["gfid_0_decoded"] > 0
        assert row["gfid_0_mean"] + row["gfid_0_covariance"] == pytest.approx(row["gfid_0"])
        assert 0 < row["chd_0"] <= 1
        assert row["rows_an_image"] == 2
        assert 0 <= row["noisy_token_accuracy"] <= 1
        assert row["noisy_token_nats"] > 0
    text = (out / "trial.md").read_text()
    assert "| wide | gfid 1.5 |" in text
    assert "verdict (95 %)" in text
    kept = [(file, file.stat().st_mtime_ns) for file in out.rglob("measures.json")]
    assert len(kept) == 4
    capsys.readouterr()
    run(words(place, out, "--seeds", "0,1", "--guidance", "0,1.5"))
    assert [(file, file.stat().st_mtime_ns) for file in out.rglob("measures.json")] == kept
    run(words(place, out, "--seeds", "0", "--guidance", "0"))  # another scale is measured
    assert "gfid_1.5" not in json.loads((out / "base" / "seed-0" / "measures.json").read_text())


@torch.inference_mode()
def test_a_tenth_of_the_context_is_replaced(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens for every generator; the targets stay."""
    from alitok.studies.judges import GeneratorJudge

    config = small.small(compose_run([DEMO / "generator.yaml"], ["--define.run", str(place)]))
    block = config["model"]["init_args"]["generator"]
    save_artifact(tmp_path / "generator", block, build(block), {"kind": "generator"})
    generator: Any = load_generator(tmp_path / "generator")
    seen: list[dict[str, torch.Tensor]] = []
    losses = generator.losses

    def noted(ids: torch.Tensor, labels: torch.Tensor, inputs: torch.Tensor) -> Any:
        seen.append({"ids": ids, "inputs": inputs})
        return losses(ids, labels, inputs)

    monkeypatch.setattr(generator, "losses", noted)
    judge = GeneratorJudge.__new__(GeneratorJudge)
    judge.device = torch.device("cpu")
    config["data"]["init_args"] |= {"val_fraction": 0.5, "val_count": None}
    first, second = (judge._noisy_accuracy(config, generator) for _ in range(2))
    assert first == second
    changed = torch.cat([(one["ids"] != one["inputs"]).flatten() for one in seen]).float().mean()
    assert 0.07 < float(changed) < 0.13


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--guidance", "a"], "--guidance takes numbers"),
        (["--samples", "1"], "--samples must be at least 2"),
        (["--tokenizer", "nowhere"], "is not an artifact"),
        (["--judge", "nowhere"], "nowhere"),
        (["--probe-steps", "5"], "these are generators: leave it out"),
    ],
)
def test_wrong_options_come_before_any_training(place: Path, tmp_path: Path, more: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        run(words(place, tmp_path / "trial", *more))
    assert not (tmp_path / "trial").exists()


def test_options_of_the_judge_alone(place: Path, tmp_path: Path) -> None:
    base = [
        "trial",
        "-c",
        str(DEMO / "generator.yaml"),
        "--idea",
        str(place / "wide.yaml"),
        "--out",
        str(tmp_path / "t"),
    ]
    for more in (
        ["--samples", "5"],
        ["--data", "x"],
        ["--tokenizer", "t"],
        ["--guidance", "1"],
        ["--probe-steps", "3"],
    ):
        with pytest.raises(BadInput, match=f"{more[0]} belongs to --judge"):
            run([*base, *more])


def tokenizer_words(place: Path, out: Path, *more: str) -> list[str]:
    (place / "l1.yaml").write_text("model: {losses: {mse: null, l1: {class_path: alitok.losses.terms.L1}}}\n")
    base = ["trial", "-c", str(DEMO / "tokenizer-stage1.yaml"), "--idea", str(place / "l1.yaml"), "--out", str(out)]
    sizes = [
        f"--model.tokenizer.{part}.{key}" for part in ("encoder", "decoder") for key in ("width", "depth", "heads")
    ]
    for place_of, value in zip(range(1, 12, 2), ("32", "1", "2") * 2, strict=True):
        sizes.insert(place_of, value)
    phases = ["--model.phases.continuous.steps", "1", "--model.phases.main.steps", "1"]
    steps = [*phases, "--data.global_batch", "4", "--data.count", "8", "--data.val_count", "4"]
    callbacks = ["--trainer.callbacks.grid", "null", "--trainer.logger", "null", "--model.warmup_steps", "0"]
    judge = ["--judge", str(place / "judge"), "--data", "shapes"]
    return [*base, *sizes, *steps, *callbacks, *judge, "--seeds", "0", *more]


def test_tokenizers_are_judged(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alitok.studies import judges

    for name, value in (("TRAIN", 24), ("VAL", 8), ("WIDTH", 64), ("DEPTH", 1)):
        monkeypatch.setattr(judges, name, value)
    out = tmp_path / "trial"
    run(tokenizer_words(place, out, "--probe-steps", "2"))
    rows = json.loads((out / "trial.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["base", "l1"]
    for row in rows:
        assert row["rfid"] == pytest.approx(row["rfid_mean"] + row["rfid_covariance"])
        assert 0 < row["psnr"] < 50
        assert row["probe_nats_a_picture"] == pytest.approx(72 * row["probe_nats"], rel=1e-4)
        assert 0 <= row["probe_accuracy"] <= 1
        assert 0 < row["probe_codebook_usage"] <= 1
        assert 0 <= row["ids_same_noisy"] <= 1
        assert {"probe_encoder", "probe_decoder", "probe_random_encoder"} <= row.keys()
        assert row["psnr"] == json.loads((out / row["name"] / "seed-0" / "measures.json").read_text())["psnr"]
    file = out / "l1" / "seed-0" / "measures.json"
    kept = file.stat().st_mtime_ns
    run(tokenizer_words(place, out, "--probe-steps", "2"))
    assert file.stat().st_mtime_ns == kept
    weights = out / "l1" / "seed-0" / "artifact" / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor * 1.1 if "decoder" in name else tensor for name, tensor in state.items()}, weights)
    run(tokenizer_words(place, out, "--probe-steps", "2"))
    assert file.stat().st_mtime_ns > kept  # another decoder, though the card's digest leaves it out
    for more in (["--samples", "5"], ["--tokenizer", "t"], ["--guidance", "1"]):
        with pytest.raises(BadInput, match=f"{more[0]} is for the samples of generators"):
            run(tokenizer_words(place, out, *more))
    with pytest.raises(BadInput, match="--probe-steps must be at least 1, not 0"):
        run(tokenizer_words(place, out, "--probe-steps", "0"))

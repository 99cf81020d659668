"""`alitok reproduce` on small weights in the release's files, whose numbers are computed here in another way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from stand_in import truth, write

from alitok.artifacts.presets import PRESETS, Preset
from alitok.artifacts.release import generator_from_release, tokenizer_to_release
from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.generator import Generator
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.generate import generate

COUNT = 24


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    means, covariances = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.fixture(scope="module")
def weights(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preset]:
    """Files `AliTok.pth`, `alitok_s.bin`, `reference.npz`, `inception.pt`; and the numbers that they give."""
    folder = tmp_path_factory.mktemp("weights")
    decoder = Decoder(256, 16, 17, 8, 64, 1, 1, causal=False, buffer_tokens=4)
    tokenizer = Tokenizer(Encoder(256, 16, 273, 8, 64, 1, 1), ClusteredQuantizer(64, 8, clustering=False), decoder)
    golden.randomize(tokenizer)
    state = golden.fill(golden.json("official_ar_tiny_keys"))
    torch.save({name: t.clone() for name, t in tokenizer_to_release(tokenizer.state_dict()).items()}, folder / "t.pth")
    torch.save(state, folder / "g.bin")
    generator = Generator(64, 10, 17, (16, 16), 128, 3, 4).eval()
    generator.load_state_dict(generator_from_release(state))
    labels = torch.arange(COUNT) % 10
    images = tokenizer.decode(generate(generator, labels, 3.0, 1.5, seed=9)).clamp(0, 1)
    pixels = (images * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    others = np.random.default_rng(0).integers(0, 256, (COUNT, 256, 256, 3), np.uint8)
    np.savez(folder / "reference.npz", arr_0=others)
    write(folder / "inception.pt")
    pooled, _, probabilities = truth(pixels)
    entropy = (probabilities * np.log(probabilities / probabilities.mean(0))).sum(1)
    fid, score = frechet(pooled, truth(others)[0]), float(np.exp(entropy.mean()))
    preset = Preset(128, 3, 3.0, 1.5, 9, fid, score, COUNT, fid_tolerance=1e-3 * fid, inception_score_tolerance=1e-3)
    return folder, preset


@pytest.fixture
def reproduced(weights: tuple[Path, Preset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the verb with a row of its own; returns the JSON and the exit status."""
    folder, _ = weights

    def call(preset: Preset, *more: object) -> tuple[dict[str, Any], Any]:
        monkeypatch.setitem(PRESETS, "small", preset)
        words = ["reproduce", "small", "--tokenizer-weights", folder / "t.pth", "--generator-weights", folder / "g.bin"]
        words += ["--reference", folder / "reference.npz", "--extractor", folder / "inception.pt", "--out", tmp_path]
        status = 0
        try:
            run([str(word) for word in [*words, *more]])
        except SystemExit as stop:
            status = stop.code
        return json.loads((tmp_path / "reproduce.json").read_text()), status

    return call


def test_pass_and_fail(
    weights: tuple[Path, Preset],
    reproduced: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, preset = weights
    result, status = reproduced(preset, "--batch", 7)
    assert (result["verdict"], status) == ("pass", 0)
    record = result["record"]
    assert record["fid"] == pytest.approx(preset.fid, rel=1e-3)
    assert record["inception_score"] == pytest.approx(preset.inception_score, abs=1e-3)
    assert (record["guidance"], record["power"], record["seed"]) == (3.0, 1.5, 9)
    assert record["generator"]["name"] == "g.bin"
    assert record["comparable"] is False  # the reference and the extractor are stand-ins
    assert "small: pass" in capsys.readouterr().out
    assert (tmp_path / f"samples-{COUNT}.npz").is_file()

    # nothing is imported or drawn again
    monkeypatch.setattr("alitok.artifacts.published.import_release", None)
    for change in ({"fid": preset.fid * 1.01}, {"inception_score": preset.inception_score - 0.01}):
        result, status = reproduced(replace(preset, **change))
        assert (result["verdict"], status) == ("fail", 1)
    assert result["preset"]["count"] == COUNT
    assert "small: fail" in capsys.readouterr().out


def test_fewer_samples_give_no_verdict(
    weights: tuple[Path, Preset], reproduced: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result, status = reproduced(weights[1], "--count", 4)
    assert (result["verdict"], status) == (None, 0)
    assert result["record"]["samples"]["count"] == 4
    assert "small: no verdict, 4 samples instead of 24" in capsys.readouterr().out


def test_refusals(weights: tuple[Path, Preset], reproduced: Callable[..., Any], tmp_path: Path) -> None:
    folder, preset = weights
    with pytest.raises(BadInput, match="width 128 and 3 layers, small has 768 and 24"):
        reproduced(replace(preset, width=768, depth=24))
    for option, words in (
        ("--tokenizer-weights", "There is no file"),
        ("--reference", "does not exist"),
        ("--extractor", "none"),
    ):
        with pytest.raises(BadInput, match=words):
            reproduced(preset, option, folder / "none")
    with pytest.raises(BadInput, match=r"--count must lie in 2\.\.24"):
        reproduced(preset, "--count", 25)
    assert not list(tmp_path.glob("samples*"))


def test_what_would_fail_after_hours_is_refused_before_anything_is_imported(
    weights: tuple[Path, Preset], reproduced: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, preset = weights
    monkeypatch.setattr("alitok.artifacts.published.import_release", None)
    saved = ["--save-statistics", tmp_path / "val.npz", "--extractor", folder / "inception.pt"]
    run([str(word) for word in ["evaluate", "shapes", "--count", 13, "--size", 32, *saved]])
    for option, value, words in (
        ("--reference", tmp_path / "val.npz", "statistics of validation images, which are meant for rFID"),
        ("--reference", tmp_path / "no" / "images", "does not exist"),
        ("--json", tmp_path / "val.npz" / "x.json", "Cannot write"),
        ("--out", tmp_path / "val.npz", "Cannot write"),
    ):
        with pytest.raises(BadInput, match=words):
            reproduced(preset, option, value)
    assert [path.name for path in tmp_path.iterdir()] == ["val.npz"]

"""`alitok probe`: entropies of tokens whose law is known, and what the small generator finds in them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import write_token_cache
from alitok.studies import probe as study
from alitok.studies.probe import layout, plug_in_entropy, probe, token_statistics

TINY = {"width": 64, "depth": 1, "batch": 32}
WORDS = ["--width", "64", "--depth", "1", "--batch", "16"]


def cache_of(folder: Path, tokens: np.ndarray, labels: np.ndarray, codes: int) -> TokenCache:
    """A cache of tokens (images, views, N) or (images, views, N, S)."""
    names = [f"class {label}" for label in range(int(labels.max()) + 1)]
    rows = zip(labels.tolist(), tokens, strict=True)
    write_token_cache(folder, rows, codebook_size=codes, digest="d" * 64, class_names=names, recipe={})
    return TokenCache(folder)


def foreign(folder: Path, tokens: np.ndarray, labels: np.ndarray) -> Path:
    """The same made elsewhere: no metadata of ours."""
    import datasets

    datasets.Dataset.from_dict({"label": labels.tolist(), "tokens": tokens.tolist()}).save_to_disk(str(folder))
    return folder


def chains(images: int, length: int = 9, codes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that count upwards from a random code: all but the first token follow from the one before."""
    random = np.random.default_rng(0)
    first = random.integers(0, codes, (images, 1, 1))
    return (first + np.arange(length)) % codes, random.integers(0, 3, images)


def test_entropies_of_a_known_law(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    # the class decides between two pairs of codes: ln 8 nats alone, ln 2 given the class; half of 16 codes unused
    tokens = 2 * labels[:, None, None] + random.integers(0, 2, (2000, 1, 6))
    result = token_statistics(cache_of(tmp_path / "c", tokens, labels, 16), torch.arange(2000), 16)
    assert result["counted_tokens"] == 12_000
    assert result["codebook_usage"] == 0.5
    assert result["codebook_perplexity"] == pytest.approx(8, rel=1e-3)
    assert result["entropy"] == pytest.approx(math.log(8), abs=2e-3)
    assert result["entropy_given_position"] == pytest.approx(math.log(8), abs=2e-3)
    assert result["entropy_given_class"] == pytest.approx(math.log(2), abs=2e-3)
    assert result["entropy_by_position"] == pytest.approx(6 * [math.log(8)], abs=2e-3)
    assert result["entropy_per_picture"] == pytest.approx(6 * result["entropy_given_position"])
    assert result["codes_by_position"] == 6 * [8]
    assert result["entropy_bias"] == pytest.approx(7 / 24_000)
    assert result["entropy_given_class_bias"] == pytest.approx(1 / 6_000)


def test_the_correction_takes_most_of_the_bias_away() -> None:
    random = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(50):
        counts = torch.bincount(torch.randint(0, 64, (400,), generator=random), minlength=64)
        estimates.append(plug_in_entropy(counts))
    plain = sum(entropy for entropy, _ in estimates) / 50
    corrected = sum(entropy + bias for entropy, bias in estimates) / 50
    assert abs(corrected - math.log(64)) < 0.15 * abs(plain - math.log(64))


def test_the_generator_finds_what_can_be_known(tmp_path: Path) -> None:
    tokens, labels = chains(400)
    cache_of(tmp_path / "c", tokens, labels, 8)
    record = probe(tmp_path / "c", steps=120, **TINY)
    assert record["images"] + record["held_out"] == 400
    accuracy, nats = record["accuracy_by_position"], record["nats_by_position"]
    assert len(accuracy) == len(nats) == record["tokens"] == 9
    assert min(accuracy[1:]) > 0.95
    assert max(nats[1:]) < 0.3
    assert nats[0] == pytest.approx(math.log(8), abs=0.5)  # nothing tells the first token
    assert record["nats_per_picture"] == pytest.approx(sum(nats))
    assert record["explained_nats"] == pytest.approx(9 * math.log(8) - sum(nats), abs=0.2)  # eight of nine tokens
    assert record["token_nats"] == pytest.approx(sum(nats) / 9)


def test_the_same_seed_gives_the_same_record(tmp_path: Path) -> None:
    tokens, labels = chains(60)
    cache_of(tmp_path / "c", tokens, labels, 8)
    records = [probe(tmp_path / "c", steps=3, seed=seed, **TINY) for seed in (0, 0, 1)]
    losses = [record["token_nats"] for record in records]
    assert losses[0] == losses[1] != losses[2]


def test_few_tokens_at_a_position_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for images, codes, told in ((40, 64, True), (400, 2, False)):
        tokens = random.integers(0, codes, (images, 1, 9))
        cache_of(tmp_path / str(codes), tokens, np.zeros(images, np.int64), codes)
        run(["probe", str(tmp_path / str(codes)), "--steps", "1", *WORDS])
        printed = " ".join(capsys.readouterr().out.split())
        assert ("The entropy given the position rests on few tokens" in printed) == told


def test_what_was_seen_is_measured_on_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, labels = chains(400)
    labels = np.sort(labels)  # as in class folders
    cache_of(tmp_path / "c", tokens, labels, 8)
    measured = []
    judge = study.judge
    monkeypatch.setattr(
        study, "judge", lambda model, cache, images: (measured.append(images), judge(model, cache, images))[1]
    )
    probe(tmp_path / "c", steps=1, **TINY)
    _, seen = measured
    assert len(seen) == len(measured[0])
    assert set(labels[seen.numpy()]) == {0, 1, 2}


def test_a_cache_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, labels = chains(60)
    folder = foreign(tmp_path / "c", tokens, labels)
    with pytest.warns(UserWarning, match="cannot be checked"):
        run(["probe", str(folder), "--json", str(tmp_path / "p.json"), "--steps", "2", *WORDS])
    record = json.loads((tmp_path / "p.json").read_text())
    assert (record["digest"], record["codebook_size"], record["codebook_size_known"]) == (None, 8, False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "loss a picture" in printed
    assert "guessed from the highest id" in printed
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
    )


def test_a_tokenizer_and_its_data(artifacts: Path, tmp_path: Path) -> None:
    words = ["--tokenizer", artifacts / "tokenizer", "--data", "shapes", "--images", 40, "--held-out", 12]
    run([str(word) for word in ["probe", *words, "--json", tmp_path / "p.json", "--steps", 2, *WORDS]])
    record = json.loads((tmp_path / "p.json").read_text())
    assert (record["images"], record["held_out"], record["tokens"], record["codebook_size"]) == (40, 12, 21, 24)
    assert record["generator"]["prefix"] == 5
    assert record["source"] == str(artifacts / "tokenizer")
    assert record["data"] == "shapes"


@pytest.mark.parametrize(
    ("tokens", "prefix", "expected"),
    [
        (72, None, (8, 8)),
        (273, None, (17, 16)),
        (64, None, (0, 8)),
        (32, None, (7, 5)),
        (32, 16, (16, 4)),
        (32, 32, (32, 0)),
    ],
)
def test_layout(tokens: int, prefix: int | None, expected: tuple[int, int]) -> None:
    assert layout(tokens, prefix) == expected


@pytest.mark.parametrize("prefix", [-1, 3, 70, 100])
def test_a_prefix_that_leaves_no_square(prefix: int) -> None:
    with pytest.raises(BadInput, match="no square"):
        layout(72, prefix)


def test_entropies_of_sub_codes_add_up(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    first = labels[:, None, None] + np.zeros((2000, 1, 6), dtype=np.int64)  # 4 codes, known from the class
    second = random.integers(0, 2, (2000, 1, 6))
    cache = cache_of(tmp_path / "c", np.stack([first, second], axis=-1), labels, 8)
    result = token_statistics(cache, torch.arange(2000), 8)
    assert result["counted_tokens"] == 12_000
    assert result["codebook_usage"] == (4 + 2) / 16
    assert result["codebook_perplexity"] == pytest.approx((4 + 2) / 2, rel=1e-3)
    assert result["entropy"] == pytest.approx(math.log(8), abs=2e-3)
    assert result["entropy_given_class"] == pytest.approx(math.log(2), abs=2e-3)
    assert result["entropy_given_position"] == pytest.approx(math.log(8), abs=2e-3)
    assert result["codes_by_position"] == 6 * [3]


def test_positions_are_told_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    # the first token is always the same, the second one of four
    tokens = np.stack([np.zeros((2000, 1), dtype=np.int64), random.integers(0, 4, (2000, 1))], axis=-1)
    result = token_statistics(
        cache_of(tmp_path / "c", tokens, np.zeros(2000, dtype=np.int64), 8), torch.arange(2000), 8
    )
    assert result["entropy_by_position"] == pytest.approx([0, math.log(4)], abs=2e-3)
    assert result["codes_by_position"] == [1, 4]


def test_the_generator_finds_what_can_be_known_of_sub_codes(tmp_path: Path) -> None:
    tokens, labels = chains(400)
    cache_of(tmp_path / "c", np.stack([tokens % 4, tokens // 4], axis=-1), labels, 4)
    record = probe(tmp_path / "c", steps=120, **TINY)
    assert (record["sub_codes"], record["bits_per_token"], record["bits_per_picture"]) == (2, 4.0, 36.0)
    assert min(record["accuracy_by_position"][1:]) > 0.95
    assert record["nats_by_position"][0] == pytest.approx(math.log(8), abs=0.5)  # of both sub-codes together
    assert record["nats_per_picture"] == pytest.approx(sum(record["nats_by_position"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "token cache, or --tokenizer"),
        (["nowhere"], "does not exist"),
        (["c", "--tokenizer", "t", "--data", "shapes"], "token cache, or"),
        (["--tokenizer", "t"], "together with --data"),
        (["c", "--steps", "0"], "--steps"),
        (["c", "--width", "100"], "--width"),
        (["nowhere", "--json", "."], "Cannot write .: it is a folder"),
        (["nowhere", "--json", "/dev/null/p.json"], "Cannot write /dev/null/p.json"),
    ],
)
def test_wrong_usage(words: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        run(["probe", *words])

"""Linear probes of a tokenizer's parts, and how stable its ids are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import DEMO

from alitok.artifacts.folder import load_generator, load_tokenizer, save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.data.reading import read_all
from alitok.data.shapes import Shapes
from alitok.studies import features, small
from alitok.studies.features import measure_features, stability


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tokenizer and a generator of its tokens."""
    place = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    block = small._reduced(compose_run([DEMO / "tokenizer-stage1.yaml"])["model"]["init_args"]["tokenizer"])
    card = save_artifact(place / "tokenizer", block, build(block), {"kind": "tokenizer"})
    block = small._reduced(compose_run([DEMO / "generator.yaml"])["model"]["init_args"]["generator"])
    save_artifact(place / "generator", block, build(block), {"kind": "generator", "tokenizer": card["digest"]})
    return place


def test_a_verb_measures_all(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "probe",
        "--tokenizer",
        str(folder / "tokenizer"),
        "--data",
        "shapes",
        "--images",
        "60",
        "--held-out",
        "20",
    ]
    words += ["--steps", "1", "--width", "64", "--depth", "1", "--batch", "8", "--json", str(tmp_path / "p.json")]
    run([*words, "--features", "--generator", str(folder / "generator")])
    record = json.loads((tmp_path / "p.json").read_text())
    for name in ("probe_encoder", "probe_decoder", "probe_random_encoder", "probe_generator", "ids_same_shifted"):
        assert 0 <= record[name] <= 1
    assert record["ids_same_noisy"] > record["ids_same_shifted"]  # two gray levels are less than a pixel's shift
    out = capsys.readouterr().out
    assert "from a random encoder's" in out
    assert "under noise of 2 gray levels" in out


def test_a_probe_is_the_same_every_time_and_the_trained_encoder_is_the_one_given(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder / "tokenizer")
    train, held_out = (read_all(Shapes(split, 64, count=60), 64) for split in ("train", "val"))
    first, second = (measure_features(tokenizer, train, held_out) for _ in range(2))
    assert first == second
    assert first["probe_encoder"] > 0.1


def test_a_decoder_that_draws_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = load_tokenizer(folder / "tokenizer")
    train, held_out = (read_all(Shapes(split, 64, count=30), 64) for split in ("train", "val"))
    as_ever = measure_features(tokenizer, train, held_out)

    def integrate(*_: Any) -> None:
        raise AssertionError("it would draw every picture")

    monkeypatch.setattr(type(tokenizer.decoder), "generative", True)
    monkeypatch.setattr(tokenizer.decoder, "forward", integrate)
    found = measure_features(tokenizer, train, held_out)
    assert 0 <= found.pop("probe_decoder") <= 1  # of the codes
    assert found == {name: value for name, value in as_ever.items() if name != "probe_decoder"}


def found_of(folder: Path, held_out: int) -> dict[str, float]:
    tokenizer, generator = load_tokenizer(folder / "tokenizer"), load_generator(folder / "generator")
    features.BATCH = 16  # 60 pictures are four batches, the last of them short
    train, unseen = (read_all(Shapes(split, 64, count=60), 64) for split in ("train", "val"))
    return measure_features(tokenizer, train, (unseen[0][:held_out], unseen[1][:held_out]), generator)


def work(rank: int, folder: Path, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=2)
    found = [found_of(folder, count) for count in (60, 10)]  # 10 are one batch, of the first process
    Path(store, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 16)
    expected = [found_of(folder, count) for count in (60, 10)]
    mp.spawn(work, args=(folder, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        for mine, one in zip(json.loads((tmp_path / f"{rank}.json").read_text()), expected, strict=True):
            assert mine == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_torchrun_shares_the_features_and_one_process_trains(folder: Path, tmp_path: Path) -> None:
    words = ["-m", "alitok", "probe", "--tokenizer", str(folder / "tokenizer"), "--data", "shapes", "--features"]
    words += ["--images", "60", "--held-out", "20", "--steps", "1", "--width", "64", "--depth", "1", "--batch", "8"]
    records = []
    for count in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        place = tmp_path / f"{len(records)}.json"
        subprocess.run(
            [sys.executable, *count, *words, "--device", "cpu", "--json", str(place)], check=True, timeout=600
        )
        records.append({name: value for name, value in json.loads(place.read_text()).items() if name != "seconds"})
    assert records[0].keys() == records[1].keys()
    assert records[1]["probe_encoder"] == pytest.approx(records[0]["probe_encoder"], abs=1e-6)
    assert records[1]["token_nats"] == pytest.approx(records[0]["token_nats"], rel=1e-6)


def test_ids_of_a_constant_picture_stay_under_a_shift(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder / "tokenizer")
    flat = torch.full((3, 3, 64, 64), 77, dtype=torch.uint8)
    assert stability(tokenizer, flat)["ids_same_shifted"] == 1.0


def test_features_need_pictures(folder: Path) -> None:
    with pytest.raises(BadInput, match="--features reads pictures"):
        run(["probe", str(folder), "--features"])
    with pytest.raises(BadInput, match="--generator belongs to --features"):
        run(["probe", str(folder), "--generator", "x"])

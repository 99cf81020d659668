"""Checkpoints that 0.1 wrote in the middle of a run resume, and end at the weights that 0.1 reached."""

import json
from pathlib import Path
from typing import Any

import pytest
from kept_files import (
    FILES,
    LOSS_FLOOR,
    TOLERANCE,
    alitok_run,
    differences,
    furthest,
    kept,
    lay_out,
    logged,
    read_json,
    unpack,
    weights,
)

RUNS: dict[str, Any] = read_json("runs.json")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_module_and_idea_has_a_checkpoint() -> None:
    assert sorted(RUNS) == sorted(path.name.split(".")[0] for path in (FILES / "checkpoints").iterdir())
    ideas = {Path(file).stem for run in RUNS.values() for file in run["files"] if "/ideas/" in file}
    assert len(ideas) == 13


@pytest.mark.parametrize("name", RUNS)
def test_it_resumes_and_ends_where_it_ended(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    root, stop = tmp_path / run["root"], run["stop"]
    lay_out(tmp_path, *run["needs"])
    unpack(name, root / "checkpoints" / f"step={stop}.ckpt")
    alitok_run(["fit", *(word for file in run["files"] for word in ("-c", file)), *run["words"]])
    losses = logged(root)
    assert losses == logged(root, stop), "the run began again"
    assert not differences(kept("run-losses", name, run["losses"]), losses, floor=LOSS_FLOOR)
    before = kept("runs", name, FILES / "artifacts" / name)
    assert furthest(weights(before), weights(root / "artifact")) < TOLERANCE
    cards = [json.loads((folder / "card.json").read_text("utf-8")) for folder in (before, root / "artifact")]
    for card in cards:
        del card["digest"], card["version"]  # of every last bit; of the package
    assert not differences(kept("cards", name, cards[0]), cards[1])

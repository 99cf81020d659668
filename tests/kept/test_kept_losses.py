"""The first steps of every stack of YAML files, at a tiny size and in each of its phases, have the losses of 0.1."""

from pathlib import Path
from typing import Any

import pytest
from kept_files import DRIFT, LOSS_FLOOR, alitok_run, differences, kept, lay_out, logged, random_cache, read_json

LOSSES: dict[str, Any] = read_json("losses.json")
EVERY = LOSSES.pop("every")
PARTS = (slice(1), slice(1, None))  # before and after the first update
QUICK = [stack for stack in LOSSES if stack.startswith("experiments/demo/")]


def check(stack: str, folder: Path) -> None:
    entry = LOSSES[stack]
    lay_out(folder, *entry["needs"])
    if "tokens" in entry:
        random_cache(folder / "tokens-random", **entry["tokens"])
    alitok_run(["fit", *(word for file in entry["files"] for word in ("-c", file)), *EVERY, *entry["words"]])
    before, now = kept("losses", stack, entry["losses"]), logged(folder / entry["root"])
    now = {name: values[: len(before.get(name, values))] for name, values in now.items()}
    first, later = (
        [{name: values[part] for name, values in losses.items()} for losses in (before, now)] for part in PARTS
    )
    assert not differences(*first, floor=LOSS_FLOOR)
    assert not differences(*later, floor=LOSS_FLOOR, tolerance=DRIFT)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:Token cache .* has no")
@pytest.mark.parametrize("stack", QUICK)
def test_first_steps_of_the_demo(stack: str, tmp_path: Path) -> None:
    check(stack, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Token cache .* has no")
@pytest.mark.parametrize("stack", [stack for stack in LOSSES if stack not in QUICK])
def test_first_steps_of_every_stack(stack: str, tmp_path: Path) -> None:
    check(stack, tmp_path)

"""Every stack of YAML files composes to what it composed to in 0.1, and `describe` counts the same numbers."""

import json
from typing import Any

import pytest
from kept_files import ROOT, alitok_run, compose_run, differences, kept, overlaid, read_json

from alitok.common.build import present

STACKS: dict[str, Any] = read_json("stacks.json")
DESCRIBED: dict[str, Any] = read_json("describe.json")
OVERLAYS = ("experiments/options/", "experiments/strategies/", "experiments/debug/")
QUICK = ("experiments/demo/generator.yaml", "experiments/cifar10/tokenizer-stage1.yaml experiments/cifar10/small.yaml")
# The loss of each token is kept, (B, N) float32, since heads are a seam: up to 0.003 % of the memory.
MEMORY = 1e-4


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the names of the files are relative to it


def check_composed(stack: str) -> None:
    before = STACKS[stack]
    if "changes" in before:
        before = overlaid(STACKS[stack.split()[0]], before["changes"])
    assert not differences(present(kept("stacks", stack, before)), compose_run(stack.split()))


@pytest.mark.parametrize("stack", [name for name in STACKS if not name.split()[-1].startswith(OVERLAYS)])
def test_it_composes_as_in_0_1(stack: str) -> None:
    check_composed(stack)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [name for name in STACKS if name.split()[-1].startswith(OVERLAYS)])
def test_it_composes_under_an_overlay_as_in_0_1(stack: str) -> None:
    check_composed(stack)


def check_described(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for file in stack.split() for word in ("-c", file)]
    shared = ["--trainer.devices", "8"] if "/strategies/" in stack else []
    alitok_run(["describe", *words, *shared, "--json", "--hardware", "H100"])
    now = json.loads(capsys.readouterr().out)
    before = kept("describe", stack, DESCRIBED[stack])
    found = {name: now[name] for name in before if name in now}
    assert memory(found) == pytest.approx(memory(before), rel=MEMORY)
    assert not differences(before, found)


def memory(record: dict[str, Any]) -> list[float]:
    """Takes the bytes of memory out of a record."""
    turns = [turn.pop("memory_bytes") for turn in record.get("turns", [])]
    return [record.pop("memory_bytes"), *turns, *record.pop("memory_by_kind").values()]


@pytest.mark.parametrize("stack", QUICK)
def test_describe_counts_as_in_0_1(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_described(stack, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [name for name in DESCRIBED if name not in QUICK])
def test_describe_counts_every_stack_as_in_0_1(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_described(stack, capsys)

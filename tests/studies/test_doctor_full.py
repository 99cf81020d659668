"""The measuring command for a first day on a GPU: its dry run, and what becomes of a stage that hangs or fails."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from alitok.profiling.bench_machine import Machine
from alitok.studies.doctor import checks, full, stages
from alitok.studies.doctor.full import STAGES, run_stage, show


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_dry_run(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alitok", "doctor", "--full", "--device", "cpu", "--tiny", "--only", stage]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / f"{stage}.txt").read_text()
    assert f"{stage}: done" in done.stdout
    assert (tmp_path / f"{stage}.jsonl").read_text()
    assert f"| {stage} |" in (tmp_path / "table.md").read_text()


def test_each_number_is_written_at_once_and_none_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    day, batches = stages.Day("limits", "cpu", tmp_path, True), []

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in day.file.read_text().splitlines()]

    def seconds(batch: int) -> float:
        batches.append(batch)
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2.0

    def stage(day: Any) -> None:
        day.number("a", lambda: 1.0, "s")
        assert [line["value"] for line in lines()] == [1.0]
        day.number("b", lambda: 1 / 0)
        day.number("c", lambda: True)
        day.number("d", lambda: False)
        day.skip("e", "no GPU")
        day.rate("f", seconds, 8)

    monkeypatch.setattr(stages, "limits", stage)
    assert day.run() == 1
    assert batches == [8, 4]
    assert [line["value"] for line in lines()] == [1.0, None, "yes", "no", None, 2.0, 4]
    assert "ZeroDivisionError" in lines()[1]["failed"]
    assert show(tmp_path, {"limits": "done (1 s)"}) == 1
    table = capsys.readouterr().out
    assert "skipped: no GPU" in table
    assert "failed: ZeroDivisionError" in table


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_leaves_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    day = stages.Day("limits", "cpu", tmp_path, True)

    def stage(day: Any) -> None:
        (day.scratch / "run").mkdir(parents=True)
        (day.scratch / "set.npz").write_bytes(b"x")
        day.say("a", 1)
        if fails:
            raise RuntimeError("out of space")

    monkeypatch.setattr(stages, "limits", stage)
    if fails:
        with pytest.raises(RuntimeError, match="out of space"):
            day.run()
    else:
        assert day.run() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["limits.jsonl"]


def test_a_killed_stage_leaves_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "TINY_LIMIT", 0.2)
    (tmp_path / "rest.scratch" / "pictures").mkdir(parents=True)
    assert run_stage("rest", tmp_path, "cpu", tiny=True).startswith("stopped")
    assert not (tmp_path / "rest.scratch").exists()


class Asked:
    """Stands in for a `Day`: asks for no number, and keeps what it is told."""

    device, cuda, tiny = torch.device("cpu"), False, True

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def say(self, name: str, value: Any, unit: str = "", **notes: Any) -> None:
        self.said[name] = value


@pytest.mark.parametrize(("equal", "answer"), [(1.0, True), (0.92, True), (0.9, False), (0.0, False)])
def test_compiled_ids_that_differ_are_a_no(monkeypatch: pytest.MonkeyPatch, equal: float, answer: bool) -> None:
    class Sampler:
        def __init__(self, generator: Any, draw: Any) -> None:
            self.compiled = draw.compiled

        def sample(self, labels: torch.Tensor) -> torch.Tensor:
            ids = torch.zeros(100, dtype=torch.int64)
            if self.compiled:
                ids[round(100 * equal) :] = 1
            return ids

    monkeypatch.setattr(checks, "Sampler", Sampler)
    day = Asked()
    assert checks.compiled_agrees(day, checks.small()) is answer
    assert day.said == {"compiled: share of equal ids": pytest.approx(equal)}


@pytest.mark.parametrize("count", [0, 3])
def test_waits_for_the_device_are_a_no_with_their_places(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    class Trainer:
        def __init__(self, **options: Any) -> None: ...

        def fit(self, module: Any, datamodule: Any) -> None:
            warnings.warn("another matter", UserWarning, stacklevel=1)
            for _ in range(count):
                warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)

    day = Asked()
    vars(day)["machine"] = lambda: Machine(torch.device("cpu"), 1e9, 1e9, 1e9)
    config = checks.compose("tokenizer-stage1", [])
    monkeypatch.setattr("alitok.profiling.bench_training.training_config", lambda *_: config)
    monkeypatch.setattr("lightning.Trainer", Trainer)
    assert checks.never_waits(day) is (count == 0)
    assert list(day.said.values()) == ([count] if count else [])
    assert all(name.startswith(full.WAITS) and "test_doctor_full.py:" in name for name in day.said)


@pytest.mark.parametrize("stage", ["right", "strategies"])
@pytest.mark.parametrize("cuda", [False, True])
def test_every_check_of_correctness_can_say_no(monkeypatch: pytest.MonkeyPatch, stage: str, cuda: bool) -> None:
    """A function whose result has no unit gives yes or no: any other result would count as right."""
    for name in (
        "agree",
        "batches_in_turn",
        "beside_a_loader",
        "compiled_agrees",
        "stage1_resumed",
        "fsdp",
        "never_waits",
    ):
        hints = get_type_hints(getattr(checks, name))
        assert hints["return"] is bool, name
        monkeypatch.setattr(checks, name, lambda *_, **__: False)
    monkeypatch.setattr("alitok.sampling.decode_kernel.agrees", lambda *_, **__: False)
    monkeypatch.setattr(checks, "has_compiler", lambda: True)
    answers: dict[str, Any] = {}

    class All(Asked):
        scratch = Path("scratch")

        def number(self, name: str, make: Callable[[], Any], unit: str = "") -> None:
            if not unit:
                answers[name] = make()

        def skip(self, name: str, why: str) -> None: ...

    day = All()
    day.cuda = cuda
    getattr(checks, stage)(day)
    assert len(answers) >= 2
    assert not {name: answer for name, answer in answers.items() if answer is not False}


def test_a_stage_that_hangs_costs_its_own_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full, "TINY_LIMIT", 0.5)
    outcome = run_stage("setup", tmp_path, "cpu", tiny=True)
    assert outcome.startswith("stopped after 0.5 s")
    assert show(tmp_path, {"setup": outcome}) == 1
    assert "setup: stopped" in capsys.readouterr().out

"""The measuring command for a first day on a GPU: its dry run, and what becomes of a stage that hangs or fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.studies.doctor import full, stages
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


def test_a_stage_that_hangs_costs_its_own_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full, "TINY_LIMIT", 0.5)
    outcome = run_stage("setup", tmp_path, "cpu", tiny=True)
    assert outcome.startswith("stopped after 0.5 s")
    assert show(tmp_path, {"setup": outcome}) == 1
    assert "setup: stopped" in capsys.readouterr().out

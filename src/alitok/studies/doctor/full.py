"""The long check, in stages: is everything right on this machine, how fast is it, how near is it to its limits.

Each stage is a separate process with its own time limit, so that a stage that hangs costs only its own time. It writes
STAGE.jsonl into the folder, one line after each number, and its output into STAGE.txt. It needs no data and no network.
Seven minutes on an H100 or H200; `tiny` is a dry run for any machine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alitok.common.errors import BadInput
from alitok.common.files import write_text

# Time limits in seconds; the stages together should take half of the sum.
STAGES = {
    "setup": 60,
    "limits": 60,
    "right": 120,
    "strategies": 120,
    "sampling": 180,
    "generators": 150,
    "stage1": 150,
    "tokenizing": 120,
    "rest": 120,
}
TINY_LIMIT = 300  # seconds per stage, on a slow CPU
WAITS = "waits at"  # begins the name of a number that counts the waits for the device at a place


def full(out: Path, device: str, only: Sequence[str] | None = None, tiny: bool = False) -> int:
    """Run the stages and print the table; return the exit status."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; name a folder.")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for stage in only or STAGES:
        print(f"{stage} ...", flush=True)
        outcomes[stage] = run_stage(stage, out, device, tiny)
    write_table(out, outcomes)
    return show(out, outcomes)


def run_stage(stage: str, out: Path, device: str, tiny: bool) -> str:
    """Run a stage; return "done", "ended with 1" or "stopped after 60 s", with its seconds."""
    arguments = f"{stage!r}, {device!r}, {str(out)!r}, {tiny}"
    call = f"from alitok.studies.doctor.stages import Day; raise SystemExit(Day({arguments}).run())"
    (out / f"{stage}.jsonl").unlink(missing_ok=True)
    limit, start = TINY_LIMIT if tiny else STAGES[stage], time.perf_counter()
    few = {"OMP_NUM_THREADS": "1"} if tiny else {}  # more threads only wait for each other
    with open(out / f"{stage}.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", call], stdout=log, stderr=log, start_new_session=True, env=os.environ | few
        )
        try:
            code = process.wait(limit)
            outcome = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the stage, or its leftover workers
            process.wait()
            shutil.rmtree(scratch(out, stage), ignore_errors=True)  # a killed stage leaves it
    return f"{outcome} ({time.perf_counter() - start:.0f} s)"


def scratch(out: Path, stage: str) -> Path:
    """The folder of a stage's checkpoints and pictures, removed when the stage ends."""
    return out / f"{stage}.scratch"


def show(out: Path, outcomes: dict[str, str]) -> int:
    """Print the table; return the exit status."""
    bad = 0
    for stage, outcome in outcomes.items():
        bad += not outcome.startswith("done")
        print(f"\n{stage}: {outcome}" + ("" if outcome.startswith("done") else f", see {out / stage}.txt"))
        for entry in read_lines(out, stage):
            bad += "failed" in entry or entry["value"] == "no"
            print(f"  {entry['name']:<56}{worded(entry)}")
    return int(bad > 0)


def read_lines(out: Path, stage: str) -> list[dict[str, Any]]:
    """The numbers that a stage has written, in order."""
    file = out / f"{stage}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def write_table(out: Path, outcomes: dict[str, str]) -> None:
    """Write table.md in the form of docs/performance.md."""
    lines = ["| stage | what | value |", "|---|---|---|"]
    for stage in outcomes:
        lines += [f"| {stage} | {entry['name']} | {worded(entry)} |" for entry in read_lines(out, stage)]
    write_text(out / "table.md", "\n".join(lines) + "\n")


def worded(entry: dict[str, Any]) -> str:
    for key in ("failed", "skipped"):
        if key in entry:
            return f"{key}: {entry[key]}"[:110]
    value = entry["value"]
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value} {entry['unit']}".rstrip()

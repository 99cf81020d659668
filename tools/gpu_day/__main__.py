"""The first day on a GPU in one command: is it right, how fast is it, what is near its limit.

    python tools/gpu_day --out runs/gpu-day                          all stages, about seven minutes on an H100 or H200
    python tools/gpu_day --out runs/gpu-day --only sampling --only right
    python tools/gpu_day --out runs/dry --device cpu --tiny          the dry run: every stage, on anything

Each stage is a process of its own with a limit of its own, so that one that hangs costs its own time only. A stage
writes STAGE.jsonl into --out, a line after each number, and STAGE.txt with all that it printed. The exit status is 1
if a stage ended early, a number could not be made or a check failed. Needs no data and no network.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Seconds that a stage may take; all of them together are planned to take half of it.
STAGES = {
    "setup": 60,
    "limits": 60,
    "right": 120,
    "strategies": 120,
    "sampling": 180,
    "generators": 150,
    "stage1": 150,
    "tokenise": 120,
    "rest": 120,
}
TINY_LIMIT = 300  # of each stage, on a slow CPU


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where numbers and logs go")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--only", action="append", choices=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps, for a dry run")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels to install into --out first, without network"
    )
    parser.add_argument("--run", choices=STAGES, help=argparse.SUPPRESS)  # one stage, in this process
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.run:
        from stages import Day

        return Day(args.run, args.device, args.out, args.tiny).run()
    if args.wheels:
        install(args.wheels, args.out / "site")
    wanted = args.only or list(STAGES)
    outcomes = {stage: run_stage(stage, args) for stage in wanted}
    return show(args.out, outcomes)


def install(wheels: Path, site: Path) -> None:
    """Installs wheels into a folder, which stages find before anything else."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*words, "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))], check=True)


def run_stage(stage: str, args: argparse.Namespace) -> str:
    """Runs a stage: "done", "ended with 1" or "stopped after 60 s"."""
    command = [sys.executable, str(Path(__file__).parent), "--run", stage, "--device", args.device]
    command += ["--out", str(args.out), *(["--tiny"] if args.tiny else [])]
    (args.out / f"{stage}.jsonl").unlink(missing_ok=True)
    paths = [str(args.out / "site"), str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    limit, start = TINY_LIMIT if args.tiny else STAGES[stage], time.perf_counter()
    print(f"{stage} ...", flush=True)
    with open(args.out / f"{stage}.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(limit)
            outcome = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the stage, or workers that it left
            process.wait()
    return f"{outcome} ({time.perf_counter() - start:.0f} s)"


def show(out: Path, outcomes: dict[str, str]) -> int:
    """Prints the table; the exit status."""
    bad = 0
    for stage, outcome in outcomes.items():
        bad += not outcome.startswith("done")
        print(f"\n{stage}: {outcome}" + ("" if outcome.startswith("done") else f", see {out / stage}.txt"))
        file = out / f"{stage}.jsonl"
        for line in file.read_text().splitlines() if file.is_file() else ():
            entry: dict[str, Any] = json.loads(line)
            bad += "failed" in entry or entry["value"] == "no"
            print(f"  {entry['name']:<56}{worded(entry)}")
    return int(bad > 0)


def worded(entry: dict[str, Any]) -> str:
    for key in ("failed", "skipped"):
        if key in entry:
            return f"{key}: {entry[key]}"[:110]
    value = entry["value"]
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value} {entry['unit']}".rstrip()


if __name__ == "__main__":
    sys.exit(main())

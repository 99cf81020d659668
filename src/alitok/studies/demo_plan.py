"""Plans the demo's number of steps: times a step of each stage and fits the steps into the minutes."""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from alitok.common.build import import_class
from alitok.common.compiler import has_compiler
from alitok.common.devices import has_bfloat16
from alitok.common.errors import BadInput
from alitok.common.files import write_json
from alitok.profiling.bench_training import one_phase, step_seconds
from alitok.studies.demo import STEPS

MINUTES = 12.0
# Other work, always on the CPU: its cost at the default amount, in generator steps in float32 (measured on the machine
# of docs/results/demo.md); the option that sets the amount; the default.
FIXED = {
    "classifier": (45.0, "classifier_steps", 400),
    "tokenize": (75.0, "images", 1500),
    "samples and measures": (36.0, "samples", 1000),
}
OVERHEAD = 1.1  # factor for validations, pictures and start-up of a run
TIMED = 6  # steps
FLOOR, CEILING = 0.4, 4.0  # shares of the recipe's steps
WORTH_COMPILING = 0.85  # compile if a step takes less than this share of a plain one
NEAR = (0.9, 1.15)  # a share in this range becomes 1


@dataclass(frozen=True)
class Plan:
    """The plan of a demo; written to OUT/plan.json, so that a later start follows it too.

    Attributes:
        minutes: requested minutes; None for the recipe's steps, however long they take.
        precision: the requested precision, or the faster one here.
        share: share of the recipe's steps.
        seconds: expected seconds of each part of the demo; empty if nothing was timed.
        sizes: `images`, `samples` and `classifier_steps`.
        compiled: stages whose blocks are compiled because that is faster here.
    """

    minutes: float | None
    precision: str
    share: float
    seconds: dict[str, float]
    sizes: dict[str, int]
    compiled: list[str] = field(default_factory=list)

    def left(self, part: str) -> float | None:
        """Seconds of the parts after this one, or None."""
        names = list(self.seconds)
        return sum(list(self.seconds.values())[names.index(part) + 1 :]) if part in names else None


def planned(
    out: Path,
    configs: Mapping[str, dict[str, Any]],
    minutes: float | None,
    precision: str,
    device: torch.device,
    sizes: Mapping[str, int],
) -> Plan:
    """The plan of an earlier start, or a new one.

    Args:
        configs: stage -> configuration, in the order of work.
        minutes: None = those of an earlier start, else `MINUTES`; 0 = the recipe's steps.
        precision: training precision; "auto" = the faster one.
        sizes: see `Plan`.

    Raises:
        BadInput: an earlier start had other minutes, another precision, or another size except `samples`.
    """
    file = out / "plan.json"
    if file.is_file():
        try:
            plan = Plan(**json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise BadInput(f"{file} cannot be read: {error}. Remove it, or name another --out.") from error
        asked_held: list[tuple[str, Any, Any]] = [
            ("minutes", minutes, plan.minutes or 0),
            ("precision", precision, plan.precision),
        ]
        asked_held += [(name, sizes[name], plan.sizes.get(name)) for name in ("images", "classifier_steps")]
        for name, asked, held in asked_held:
            if asked not in (None, "auto", held):
                option = name.replace("_", "-")
                raise BadInput(
                    f"{out} is a demo with --{option} {held}, not {asked}; give that, or name another --out."
                )
        return plan
    if minutes is None:
        started = any((out / stage).exists() for stage in configs)  # version 0.1 took the recipe's steps
        minutes = 0.0 if started else MINUTES
    print(f"Demo in {out}: timing a few steps of each stage.", flush=True)
    usable = ["32-true", "bf16-mixed"] if has_bfloat16(device) else ["32-true"]
    precisions = usable if precision == "auto" else [precision]
    plan = new_plan(configs, minutes, precisions, device, sizes)
    write_json(file, asdict(plan))
    return plan


def new_plan(
    configs: Mapping[str, dict[str, Any]],
    minutes: float,
    precisions: Sequence[str],
    device: torch.device,
    sizes: Mapping[str, int],
) -> Plan:
    """Time a step of each stage in each precision, choose the faster precision, and set the number of steps.

    On a CPU with a compiler also time the generator's compiled blocks. On a GPU training always compiles, and the other
    work is counted in a step of the CPU.
    """
    start = time.perf_counter()
    steps = {stage: sum(phase["steps"] for phase in phases(config).values()) for stage, config in configs.items()}
    loading = {stage: loading_seconds(config) for stage, config in configs.items()}
    timed = {
        precision: {stage: timed_step(config, precision, device) for stage, config in configs.items()}
        for precision in precisions
    }

    def training(precision: str) -> dict[str, float]:
        return {name: OVERHEAD * steps[name] * (timed[precision][name] + loading[name]) for name in configs}

    precision = min(precisions, key=lambda name: sum(training(name).values()))
    last = list(configs)[-1]
    cpu = torch.device("cpu")  # the device of the other work
    known = device == cpu and "32-true" in timed
    unit = timed["32-true"][last] if known else timed_step(configs[last], "32-true", cpu)
    compiled = []
    if device.type == "cpu" and has_compiler():
        # A tokenizer's blocks have fewer small operations and gained nothing (docs/performance.md).
        seconds = timed_compiled(configs[last], precision, device)
        if seconds < WORTH_COMPILING * timed[precision][last]:
            compiled.append(last)
            timed[precision][last] = seconds
    fixed = {name: count * unit * sizes[option] / usual for name, (count, option, usual) in FIXED.items()}
    spent = time.perf_counter() - start
    share = (60 * minutes - spent - sum(fixed.values())) / sum(training(precision).values()) if minutes else 1.0
    share = 1.0 if NEAR[0] <= share <= NEAR[1] else min(CEILING, max(FLOOR, share))
    trained = {name: share * seconds for name, seconds in training(precision).items()}
    expected = {name: round((fixed | trained)[name], 1) for name in STEPS}
    return Plan(minutes or None, precision, round(share, 3), expected, dict(sizes), compiled)


def phases(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The phases of a configuration's schedule."""
    found: dict[str, dict[str, Any]] = config["model"]["init_args"]["phases"]
    return found


def timed_step(config: dict[str, Any], precision: str, device: torch.device) -> float:
    """Seconds of a training step, without loading."""
    config = one_phase(copy.deepcopy(config))
    config["trainer"]["precision"] = precision
    return step_seconds(config, device, count=TIMED)


def timed_compiled(config: dict[str, Any], precision: str, device: torch.device) -> float:
    """As `timed_step`, with compiled blocks; infinite if they do not compile here."""
    config = copy.deepcopy(config)
    config["model"]["init_args"]["compile_blocks"] = True
    try:
        return timed_step(config, precision, device)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError):  # the compiler exists but does not work
        return math.inf


def loading_seconds(config: Mapping[str, Any]) -> float:
    """Seconds to load a batch of images in this process; 0 if tokens are read or other processes load."""
    arguments = config["data"]["init_args"]
    if arguments.get("cache") or arguments.get("num_workers"):
        return 0.0
    data = import_class(config["data"]["class_path"])(**arguments)
    data.setup("fit")
    batches = iter(data.batches_from(lambda: 0))
    next(batches)
    start = time.perf_counter()
    next(batches)
    return time.perf_counter() - start


def cut(config: dict[str, Any], share: float) -> dict[str, Any]:
    """Scale the configuration's steps by the share, in place; from 50 steps on, to multiples of 50."""
    for phase in phases(config).values():
        steps = phase["steps"] * share
        phase["steps"] = (
            phase["steps"] if share == 1 else max(1, round(steps / 50) * 50 if steps >= 50 else round(steps))
        )
    return config

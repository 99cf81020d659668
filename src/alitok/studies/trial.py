"""Compares ideas with their base: all are trained with the same seeds and measured in the same way."""

import copy
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.common.build import import_class
from alitok.common.ends import alone_in
from alitok.common.errors import BadInput, fault_of
from alitok.common.files import no_room, write_json, write_text
from alitok.common.source import code_digest
from alitok.config import compose_run, has_place, load_yaml, parse_overrides
from alitok.reports.differences import BASE, MEANING, collapsed, table, verdict_table

if TYPE_CHECKING:
    from alitok.reports.runs import Run
    from alitok.studies.judges import Judging

Plan = tuple[str, int, dict[str, Any]]  # name, seed, configuration
INTERFACES = ("alitok.models.seams", "alitok.losses.terms")  # of base classes only


def plan(
    base: Sequence[str],
    ideas: Sequence[str],
    sweeps: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    overrides: Sequence[str],
) -> list[Plan]:
    """Compose every run before any is trained, so that errors show early.

    Args:
        base: configuration files.
        ideas: "FILE,...", files laid over the base together.
        sweeps: "KEY=A,B,..."; each value is a separate idea.
        overrides: --key value for base and ideas; a key that only some have applies to these.

    Raises:
        BadInput: a configuration that does not compose, two ideas of one name, or an idea that changes nothing.
    """
    files: dict[str, list[str]] = {BASE: []}
    own: dict[str, list[str]] = {BASE: []}
    for words in ideas:
        overlay = words.split(",")
        if not all(overlay):
            raise BadInput(f"--idea takes FILE,... and not {words!r}.")
        name = "+".join(Path(file).stem for file in overlay)
        if name in files:
            raise BadInput(f"--idea {words}: there is a {name!r} already; runs are named by their files.")
        files[name], own[name] = overlay, []
    for words in sweeps:
        key, equals, values = words.removeprefix("--").partition("=")
        settings = re.split(r",(?![^\[]*\])", values)  # a comma inside brackets belongs to the value
        if not (key and equals and all(settings)):
            raise BadInput(f"--sweep takes KEY=A,B,... and not {words!r}.")
        for setting in settings:
            name = re.sub(r"[^\w.+=-]", "_", f"{key.rpartition('.')[2]}={setting}")
            if name in files and own[name] != [f"--{key}={setting}"]:  # another key with the same last word
                name = re.sub(r"[^\w.+=-]", "_", f"{key}={setting}")
            if name in files:
                raise BadInput(f"--sweep {words}: there is a {name!r} already; give each value once.")
            files[name], own[name] = [], [f"--{key}={setting}"]
    for key, value in parse_overrides(overrides):
        takers = [name for name in files if has_place([*base, *files[name]], key)] or list(files)
        if len(takers) < len(files):
            print(f"--{key} concerns {', '.join(takers)} only: the others have no such key.", flush=True)
        for name in takers:
            own[name].insert(0, f"--{key}={'null' if value is None else value}")
    plans = []
    for seed in seeds:
        configs: dict[str, dict[str, Any]] = {}
        for name, overlay in files.items():
            place = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(out / name / f"seed-{seed}")]
            configs[name] = compose_run([*base, *overlay], [*own[name], *place])
            measure_the_end(configs[name])
            if name != BASE and decisive(configs[name]) == decisive(configs[BASE]):
                what = f"--idea {','.join(overlay)}" if overlay else f"--sweep {own[name][-1].removeprefix('--')}"
                raise BadInput(f"{what} changes nothing of the base's model, data, length or precision.")
        plans += [(name, seed, config) for name, config in configs.items()]
    return plans


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's weights and numbers: the model, the data, and some of the trainer's settings."""
    trainer = config["trainer"]
    average = (trainer.get("callbacks") or {}).get("average")
    return {**{part: config[part] for part in ("model", "data")}, "average": average} | {
        key: trainer.get(key) for key in ("precision", "max_steps")
    }


def measure_the_end(config: dict[str, Any]) -> None:
    """If the validations would miss the last step, validate only once, at the end."""
    from alitok.training.launch import total_steps

    total, trainer = total_steps(config), config["trainer"]
    if not isinstance(trainer.get("val_check_interval"), int) or total % trainer["val_check_interval"]:
        trainer["val_check_interval"] = total


def trains_tokenizer(config: Mapping[str, Any]) -> bool:
    """Whether the run trains a tokenizer; else it trains a generator."""
    return "tokenizer" in config["model"]["init_args"]


def run_trial(plans: Sequence[Plan], out: Path, judging: "Judging | None" = None) -> tuple[str, list[str]]:
    """Train and measure what is missing; write trial.json, trial.md and compare.html into `out`.

    Returns:
        the tables in Markdown, and one sentence for each thing that the page could not show.
    """
    from alitok.common.devices import pick_device
    from alitok.reports.comparison import write_page
    from alitok.reports.provenance import command, machine
    from alitok.reports.runs import open_runs, training_seconds
    from alitok.studies.judges import open_judge
    from alitok.training.launch import run as launch

    costs = {name: cost_of(config) for name, seed, config in plans if seed == plans[0][1]}
    failed: dict[tuple[str, int], str] = {}

    def fails(name: str, seed: int, error: Exception) -> None:
        """Note an idea's failure; the base's ends the trial, and so does a full disk."""
        if name == BASE or isinstance(error, OSError) or no_room(error):
            raise error
        failed[name, seed] = str(error) if isinstance(error, BadInput) else fault_of(error)
        print(f"{name}, seed {seed}: {failed[name, seed]}", flush=True)

    with alone_in(out):
        for _, _, config in plans:
            check_same(config)
        for number, (name, seed, config) in enumerate(plans, start=1):
            print(f"{number} of {len(plans)}: {name}, seed {seed}", flush=True)
            if (code := code_of(config)) and not code_file(config).exists():
                code_file(config).parent.mkdir(parents=True, exist_ok=True)
                write_json(code_file(config), code)
            try:
                launch("fit", copy.deepcopy(config))
            except Exception as error:  # it diverges, or its code breaks: the others may not
                fails(name, seed, error)
                if not any(code_file(config).parent.rglob("*.ckpt")):  # nothing is trained, so the code may be mended
                    code_file(config).unlink(missing_ok=True)
        plans = [one for one in plans if one[:2] not in failed]
        judge = None
        if judging is not None:
            judge = open_judge(judging, trains_tokenizer(plans[0][2]), pick_device("auto"))
        rows, folders = [], []
        for number, (name, seed, config) in enumerate(plans, start=1):
            folder = Path(config["trainer"]["default_root_dir"])
            try:
                if judge is not None:
                    print(f"{number} of {len(plans)}: measuring {name}, seed {seed}", flush=True)
                    judge.measure(config, folder)
                found = measures(*open_runs([folder]))
            except Exception as error:
                fails(name, seed, error)
                continue
            rows.append({"name": name, "seed": seed, "seconds": training_seconds(folder), **found, **costs[name]})
            folders.append(folder)
    lines = [f"- {name}, seed {seed}, failed: {sentence}" for (name, seed), sentence in failed.items()]
    few = collapsed(rows)
    write_json(
        out / "trial.json",
        {"rows": rows, "failed": lines, "collapsed": few, "command": command(), "machine": machine()},
    )
    verdicts = verdict_table(rows)
    parts = (table(rows), verdicts, MEANING if verdicts else "", "\n".join([*lines, *few]))
    text = "\n\n".join(part for part in parts if part)
    write_text(out / "trial.md", f"{text}\n\nCommand: `{command()}`. Machine: {machine()}.\n")
    return text, write_page(folders, out / "compare.html")


def check_same(config: dict[str, Any]) -> None:
    """Raise BadInput if the run in the configuration's folder was trained with another configuration or other code."""
    from alitok.training.changes import compare, grave_changes
    from alitok.training.launch import steps_done, total_steps

    root = Path(config["trainer"]["default_root_dir"])
    again = "Take that back, delete that folder, or name another folder with --out."
    earlier = load_yaml(root / "config.yaml") if (root / "config.yaml").is_file() else config
    if changes := grave_changes(compare(earlier, config), more=("trainer.precision", "data.val_count")):
        raise BadInput(f"{root} was trained with other settings: {changes}. {again}")
    if (done := steps_done(config)) > (total := total_steps(config)):
        raise BadInput(f"{root} was trained {done:,} steps, which is more than {total:,}. {again}")
    if (file := code_file(config)).is_file():
        now = code_of(config)
        for name, digest in json.loads(file.read_text()).items():
            if now.get(name, digest) != digest:
                raise BadInput(f"The code of {name} has changed since {root} was trained. {again}")


def code_file(config: Mapping[str, Any]) -> Path:
    return Path(config["trainer"]["default_root_dir"]) / "code.json"


def code_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Class path -> digest of its source, for the user's own classes."""
    return {name: digest for name, digest in class_digests(config).items() if not name.startswith("alitok.")}


def class_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Class path -> digest of its source file ("" without one), sorted: the model's classes, the data's if your own."""
    from alitok.artifacts.folder import class_paths

    # the package's data classes are left out: they change often, and their tests hold the order and form of the data
    data = {name for name in class_paths(config["data"]) if not name.startswith("alitok.")}
    return {name: source_digest(import_class(name)) for name in sorted(data.union(class_paths(config["model"])))}


def source_digest(target: Any) -> str:
    """Digest of the source of a class, of its parents in the same package, and of what ideas share; "" without one."""
    package = str(getattr(target, "__module__", "")).partition(".")[0]
    parents = [one for one in getattr(target, "__mro__", [target]) if one.__module__.partition(".")[0] == package]
    modules = dict.fromkeys(one.__module__ for one in parents if one.__module__ not in INTERFACES)
    waiting = list(modules)
    while waiting:  # modules of `alitok.ideas.shared` that they import, at any depth
        for value in vars(sys.modules[waiting.pop()]).values():
            name = value.__name__ if inspect.ismodule(value) else str(getattr(value, "__module__", ""))
            if name.startswith("alitok.ideas.shared.") and name not in modules:
                modules[name] = None
                waiting.append(name)
    files = [sys.modules[name].__file__ for name in modules]
    digests = [code_digest(file) for file in files if file]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""


def cost_of(config: dict[str, Any]) -> dict[str, float]:
    """`parameters` of the trained model, and `flops_a_step` over the global batch; none if no step can be counted."""
    from alitok.profiling.cost import cost
    from alitok.profiling.record import layout_of

    try:
        found = cost(config, layout_of(config["trainer"]))
    except BadInput:
        raise
    except Exception:  # own code may read values, which counting has none of; if it is broken, the run itself says so
        return {}
    return {"parameters": found.total, "flops_a_step": round(sum(found.flops.values()))}


def measures(run: "Run") -> dict[str, float]:
    """The run's numbers, without the name of the part in their keys. A judge's go before those of its own validation.

    Raises:
        BadInput: one is not finite.
    """
    for key, value in run.numbers.items():
        if not math.isfinite(value):
            raise BadInput(f"{run.folder}: {key} is {value}, so the run cannot be compared.")
    judged_last = sorted(run.numbers.items(), key=lambda item: item[0].startswith("measures: "))
    return {key.rpartition(": ")[2]: value for key, value in judged_last}

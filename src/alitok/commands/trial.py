"""Try ideas against their base: all trained over the same seeds, then one table and one page.

Each --idea is a YAML laid over the base (several with commas between: laid in order). Stopped at any point, the same
command goes on where it stopped. Give two seeds or more: without a spread a difference says nothing.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.commands.options import add_config_argument
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.reports.runs import Run

TAKES_OVERRIDES = True
BASE = "base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--idea",
        action="append",
        required=True,
        metavar="FILE,...",
        help="laid over it; give one for each idea",
    )
    parser.add_argument("--seeds", default="0,1", metavar="N,...", help="(default 0,1)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for runs, table and page")
    parser.epilog = (
        "example: alitok trial -c experiments/demo/tokenizer-stage1.yaml --idea experiments/ideas/perturbation.yaml"
        " --out runs/trial\n"
        "any --key value overrides the files of base and ideas alike; a key that only an idea has changes that idea"
    )


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from alitok.common.ends import alone_in
    from alitok.common.files import write_json, write_text
    from alitok.reports.comparison import write_page
    from alitok.reports.provenance import command, machine
    from alitok.reports.runs import open_runs, parse_seeds, training_seconds
    from alitok.training.launch import run as launch

    plans = compose_all(args.config, args.idea, parse_seeds(args.seeds), args.out, args.overrides)
    with alone_in(args.out):
        for number, (name, seed, config) in enumerate(plans, start=1):
            print(f"{number} of {len(plans)}: {name}, seed {seed}", flush=True)
            launch("fit", copy.deepcopy(config))
    folders = [Path(config["trainer"]["default_root_dir"]) for _, _, config in plans]
    rows = [
        {"name": name, "seed": seed, "seconds": training_seconds(folder), **measures(run)}
        for (name, seed, _), folder, run in zip(plans, folders, open_runs(folders), strict=True)
    ]
    write_json(args.out / "trial.json", {"rows": rows, "command": command(), "machine": machine()})
    text = table(rows)
    write_text(args.out / "trial.md", f"{text}\n\nCommand: `{command()}`. Machine: {machine()}.\n")
    Console().print(Markdown(text))
    for note in write_page(folders, args.out / "compare.html"):
        print(f"note: {note}")
    print(f"{args.out}: trial.md, trial.json, compare.html of {len(folders)} runs")


def compose_all(
    base: Sequence[str], ideas: Sequence[str], numbers: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[tuple[str, int, dict[str, Any]]]:
    """(name, seed, configuration) of every run, so that what does not compose is said before anything is trained.

    Raises:
        BadInput: a configuration that does not compose, two ideas of one name, or an idea that changes nothing.
    """
    from alitok.config import compose_run, has_place, parse_overrides

    files: dict[str, list[str]] = {BASE: []}
    for words in ideas:
        overlay = words.split(",")
        name = "+".join(Path(file).stem for file in overlay)
        if name in files:
            raise BadInput(f"--idea {words}: there is a {name!r} already; runs are named by their files.")
        files[name] = overlay
    given: dict[str, list[str]] = {name: [] for name in files}
    for key, value in parse_overrides(overrides):
        takers = [name for name in files if has_place([*base, *files[name]], key)] or list(files)
        if len(takers) < len(files):
            print(f"--{key} concerns {', '.join(takers)} only: the others have no such key.", flush=True)
        for name in takers:
            given[name].append(f"--{key}={'null' if value is None else value}")
    plans = []
    for seed in numbers:
        configs: dict[str, dict[str, Any]] = {}
        for name, overlay in files.items():
            own = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(out / name / f"seed-{seed}")]
            configs[name] = compose_run([*base, *overlay], [*given[name], *own])
            measure_the_end(configs[name])
            if name != BASE and all(configs[name][part] == configs[BASE][part] for part in ("model", "data")):
                raise BadInput(f"--idea {','.join(overlay)} changes nothing of the base's model or data.")
        plans += [(name, seed, config) for name, config in configs.items()]
    return plans


def measure_the_end(config: dict[str, Any]) -> None:
    """Where validations would miss the last step, there is one only, at the end."""
    from alitok.training.launch import total_steps

    total, trainer = total_steps(config), config["trainer"]
    if not isinstance(trainer.get("val_check_interval"), int) or total % trainer["val_check_interval"]:
        trainer["val_check_interval"] = total


def measures(run: "Run") -> dict[str, float]:
    """What the run's card measures, without the name of its part."""
    return {key.rpartition(": ")[2]: value for key, value in run.numbers.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a measure, a column a name: mean and deviation over seeds, and an idea's distance to the base.

    Args:
        rows: `name`, `seed`, and measures; the base's come first.
    """
    from alitok.reports.charts import duration
    from alitok.reports.comparison import UNITS
    from alitok.reports.runs import ABSENT, spread

    names = list(dict.fromkeys(row["name"] for row in rows))
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("name", "seed", "seconds")]
    count = len({row["seed"] for row in rows})
    lines = [f"| {count} seeds | {' | '.join(names)} |" if count > 1 else f"| one seed | {' | '.join(names)} |"]
    lines.append(f"|{'---|' * (len(names) + 1)}")
    for key in keys:
        unit, cells, base = UNITS.get(key, ""), [], None
        for name in names:
            values = [row[key] for row in rows if row["name"] == name and row.get(key) is not None]
            if not values:
                cells.append(ABSENT)
                continue
            mean, deviation = spread(values)
            cell = said(mean, unit) + (f" ± {said(deviation, unit)}" if deviation is not None else "")
            if name == BASE:
                base = mean
            elif base is not None:
                cell += f" ({'+' if mean >= base else '-'}{said(abs(mean - base), unit)})"
            cells.append(cell)
        lines.append(f"| {key.replace('_', ' ')} | {' | '.join(cells)} |")
    took = [[row["seconds"] for row in rows if row["name"] == name and row["seconds"] is not None] for name in names]
    lines.append(f"| wall time a run | {' | '.join(duration(spread(s)[0]) if s else ABSENT for s in took)} |")
    return "\n".join(lines)


def said(value: float, unit: str) -> str:
    """Four digits of a measure; shares in per cent, where the unit says so."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g}" + f" {unit}" * bool(unit)

"""The league: many ideas, each against its base over the same seeds, and one table of their differences."""

import copy
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from alitok.common.build import import_class
from alitok.common.ends import alone_in
from alitok.common.errors import BadInput
from alitok.common.files import sha256, write_json
from alitok.config import compose_run, load_yaml
from alitok.reports.differences import BASE
from alitok.reports.league import Family, Idea, write_page
from alitok.reports.provenance import command, machine
from alitok.reports.runs import open_runs, read_json, training_seconds
from alitok.studies.judges import GeneratorJudge, Judge, Judging, TokenizerJudge
from alitok.studies.trial import Plan, cost_of, measures, plan

UNTIMED = 0.3  # of the machine's peak, until a run has been timed here

Row = dict[str, Any]


@dataclass(frozen=True)
class League:
    """What `experiments/league/league.yaml` says.

    Attributes:
        seeds: of every idea and base.
        classifier_steps: of the network whose features the distances compare.
        samples: of a gFID.
        probe_steps: of the small generator that learns a tokenizer's tokens.
    """

    seeds: list[int]
    classifier_steps: int
    samples: int
    probe_steps: int
    families: dict[str, Family]

    @classmethod
    def load(cls, path: Path) -> "League":
        """Reads the file; paths in it count from its folder.

        Raises:
            BadInput: keys that are missing or not known.
        """
        content = load_yaml(path)
        families = {}
        for name, block in (content.get("families") or {}).items():
            ideas = {}
            for idea, entry in (block.get("ideas") or {}).items():
                entry = {"files": [f"../ideas/{idea}.yaml"], **entry}
                ideas[idea] = _filled(Idea, {**entry, "files": _near(path, entry["files"])}, f"{name}.{idea}")
            placed = {key: _near(path, block[key]) for key in ("base", "tokenizer") if block.get(key)}
            families[name] = _filled(Family, {"overrides": {}, **block, **placed, "ideas": ideas}, name)
        league: League = _filled(cls, {**content, "families": families}, path.name)
        return league


def _near(path: Path, files: Sequence[str]) -> list[str]:
    """Files named from the folder of another."""
    return [os.path.normpath(path.parent / file) for file in files]


def _filled(kind: Any, content: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if wrong := sorted(content.keys() - known):
        raise BadInput(f"{where} has no key {wrong[0]!r}: it takes {', '.join(sorted(known))}.")
    if missing := sorted(needed - content.keys()):
        raise BadInput(f"{where} needs {', '.join(missing)}.")
    return kind(**content)


@dataclass(frozen=True)
class Entry:
    """One run of the league."""

    family: str
    name: str
    seed: int
    config: dict[str, Any]
    digest: str
    cost: dict[str, float]

    @property
    def root(self) -> Path:
        return Path(self.config["trainer"]["default_root_dir"])

    def is_row(self, row: Row) -> bool:
        """Whether a row is of this run, whatever its digest."""
        return (row["family"], row["name"], row["seed"]) == (self.family, self.name, self.seed)


def entries_of(league: League, data: str, out: Path, only: Sequence[str] | None = None) -> Iterator[Entry]:
    """Every run, in the order of the file; each idea comes with the base's runs that it needs.

    Args:
        only: names of ideas; None for all.

    Raises:
        BadInput: a configuration that does not compose, or an idea that changes nothing.
    """
    for name, family in league.families.items():
        given = [word for key, value in family.overrides.items() for word in (f"--{key}", json.dumps(value))]
        if family.tokenizer is None:
            given += ["--define.source", data]
        else:
            given += ["--define.cache", f"{out / name}/tokens", "--define.tokenizer", f"{tokenizer_of(out, name)}"]
        costs: dict[str, dict[str, float]] = {}
        done = set()
        for idea, entry in family.ideas.items():
            if only is not None and idea not in only:
                continue
            plans = plan(family.base, [",".join(entry.files)], [], league.seeds, out / name, given)
            for run, seed, config in _renamed(plans, idea):
                if (run, seed) not in done:
                    done.add((run, seed))
                    if run not in costs:
                        costs[run] = cost_of(config)
                    yield Entry(name, run, seed, config, digest_of(config, league, family, out), costs[run])


def _renamed(plans: Sequence[Plan], idea: str) -> Iterator[Plan]:
    """The runs under the name that the league gives the idea."""
    for name, seed, config in plans:
        if name != BASE:
            folder = Path(config["trainer"]["default_root_dir"])
            config["trainer"]["default_root_dir"] = str(folder.parent.parent / idea / folder.name)
        yield (name if name == BASE else idea), seed, config


def tokenizer_of(out: Path, family: str) -> Path:
    """The artifact whose tokens a family of generators learns."""
    return out / family / "tokenizer" / "stage1" / "artifact"


def digest_of(config: Mapping[str, Any], league: League, family: Family, out: Path) -> str:
    """Of what decides a row: the configuration, wherever it runs, the sources of its classes, and the measures."""
    tokenizer = None if family.tokenizer is None else compose_run(family.tokenizer)["model"]
    settings = (league.classifier_steps, league.samples, league.probe_steps, tokenizer, family.tokenizer_overrides)
    text = json.dumps([config["model"], config["data"], settings], sort_keys=True).replace(str(out), "OUT")
    data = config["data"]["init_args"]
    if "source" in data:
        text = text.replace(json.dumps(data["source"]), '"SOURCE"')
    digest = hashlib.sha256(text.encode())
    for name in sorted(set(_classes(config["model"]))):
        file = inspect.getsourcefile(import_class(name))
        digest.update(f"{name} {sha256(file) if file else ''}".encode())
    return digest.hexdigest()[:16]


def _classes(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield str(value["class_path"])
        for item in value.values():
            yield from _classes(item)


def run_league(
    league: League, data: str, out: Path, results: Path, hours: float, renew: bool, only: Sequence[str] | None = None
) -> list[str]:
    """Trains and measures what is missing, and writes `results`.json, .md and .png after every run.

    Args:
        data: spec of the pictures.
        out: where the runs are.
        hours: no run begins that would end after so many.
        renew: train again what has rows of another configuration or source; else these rows are marked stale.
        only: names of ideas; None for all.

    Returns:
        what was left undone, a sentence each.
    """
    kept = results.with_suffix(".json")
    with alone_in(out):
        rows: list[Row] = read_json(kept)["rows"] if kept.is_file() else []

        def write() -> None:
            write_json(kept, {"rows": rows, "command": command(), "machine": machine()})
            write_page(league.families, rows, results)

        entries = list(entries_of(league, data, out, only))
        missing = []
        for entry in entries:
            known = [row for row in rows if entry.is_row(row)]
            for row in known:
                row["stale"] = row["digest"] != entry.digest
            if not known or (renew and known[0]["stale"]):
                missing.append(entry)
        pace, start = pace_of(rows), time.perf_counter()
        print(
            f"{len(entries)} runs, {len(missing)} to train: about"
            f" {sum(seconds_of(entry, pace) for entry in missing) / 3600:.1f} hours"
            f"{'' if rows else ', by the speed of matrix products'}; the budget is {hours:g}.",
            flush=True,
        )
        judges: dict[str, Judge] = {}
        left = 0
        for number, entry in enumerate(missing, start=1):
            if time.perf_counter() - start + seconds_of(entry, pace) > hours * 3600:
                left += 1
                continue
            print(f"{number} of {len(missing)}: {entry.family} {entry.name}, seed {entry.seed}", flush=True)
            if entry.family not in judges:
                judges[entry.family] = judge_of(league, entry.family, data, out)
            if any(entry.is_row(row) for row in rows):
                shutil.rmtree(entry.root, ignore_errors=True)  # the stale run
            row = row_of(entry, judges[entry.family])
            rows[:] = [other for other in rows if not entry.is_row(other)] + [row]
            write()
        write()
    notes = []
    if left:
        notes.append(f"{left} runs do not fit into the {hours:g} hours: run the command again.")
    if stale := sum(row["stale"] for row in rows):
        notes.append(f"{stale} rows are of another configuration or source: --renew trains them again.")
    return notes


def row_of(entry: Entry, judge: Judge) -> Row:
    """Trains and measures one run."""
    from alitok.training.launch import run as launch

    launch("fit", copy.deepcopy(entry.config))
    judge.measure(entry.config, entry.root)
    (run,) = open_runs([entry.root])
    row = {"family": entry.family, "name": entry.name, "seed": entry.seed, "digest": entry.digest, "stale": False}
    row |= {"seconds": training_seconds(entry.root), "flops": flops_of(entry), **entry.cost, **measures(run)}
    return row


def judge_of(league: League, name: str, data: str, out: Path) -> Judge:
    """What measures a family; trains the classifier and the tokenizer of a family of generators if they are missing."""
    from alitok.common.devices import pick_device

    family, device, classifier = league.families[name], pick_device("auto"), out / "classifier"
    if family.tokenizer is None:
        entry = compose_run(family.base)["data"]["init_args"]
    else:
        config = _tokenizer_config(family, name, data, out)
        entry = config["data"]["init_args"]
        _train_tokenizer(config, name, data, out)
    if not classifier.exists():
        _train_classifier(data, int(entry["image_size"]), league.classifier_steps, classifier, device)
    tokenizer = None if family.tokenizer is None else str(tokenizer_of(out, name))
    judging = Judging(str(classifier), data, tokenizer, league.samples, probe_steps=league.probe_steps)
    return (TokenizerJudge if tokenizer is None else GeneratorJudge)(judging, device)


def _tokenizer_config(family: Family, name: str, data: str, out: Path) -> dict[str, Any]:
    assert family.tokenizer is not None
    given = family.tokenizer_overrides or {}
    words = [word for key, value in given.items() for word in (f"--{key}", json.dumps(value))]
    return compose_run(
        family.tokenizer, [*words, "--define.source", data, "--define.run", str(out / name / "tokenizer")]
    )


def _train_tokenizer(config: dict[str, Any], name: str, data: str, out: Path) -> None:
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.data.encoding import tokenize
    from alitok.data.sources import open_source
    from alitok.training.launch import run as launch

    print(f"{name}: the tokenizer and its tokens", flush=True)
    launch("fit", config)
    tokenizer = load_tokenizer(tokenizer_of(out, name), pick_device("auto"))
    tokenize(tokenizer, open_source(data, "train", size=tokenizer.image_size), out / name / "tokens", crops="center")


def _train_classifier(data: str, size: int, steps: int, folder: Path, device: Any) -> None:
    from alitok.data.reading import read_all
    from alitok.data.sources import open_source
    from alitok.evaluation.classifier import train_and_save

    source = open_source(data, "train", size=size)
    images, labels = read_all(source, size)
    train_and_save(images, labels, len(source.class_names), folder, steps, 24, device)


def pace_of(rows: Sequence[Row]) -> float:
    """FLOPs a second that training reached here; without timed rows, a share of what matrix products reach."""
    from alitok.common.hardware import measure_cpu

    timed = [row for row in rows if row["seconds"]]
    if timed:
        return float(sum(row["flops"] for row in timed) / sum(row["seconds"] for row in timed))
    return UNTIMED * measure_cpu().rate("bfloat16")


def seconds_of(entry: Entry, pace: float) -> float:
    """What a run will take."""
    return flops_of(entry) / pace


def flops_of(entry: Entry) -> float:
    """Of the whole run."""
    from alitok.training.launch import total_steps

    return entry.cost["flops_a_step"] * total_steps(entry.config)

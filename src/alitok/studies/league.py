"""The league: many ideas, each against its base over the same seeds, and one table of their differences."""

import copy
import hashlib
import inspect
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from alitok.artifacts.folder import class_paths
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
from alitok.studies.trial import cost_of, measures, plan
from alitok.training.launch import total_steps

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
        for name, block in _map(content.get("families"), "families").items():
            ideas = {}
            for idea, entry in _map(_map(block, name).get("ideas"), f"{name}.ideas").items():
                entry = {"files": [f"../ideas/{idea}.yaml"], **_map(entry, f"{name}.{idea}")}
                ideas[idea] = _filled(Idea, {**entry, "files": _near(path, entry["files"])}, f"{name}.{idea}")
            placed = {key: _near(path, block[key]) for key in ("base", "tokenizer") if block.get(key)}
            families[name] = _filled(Family, {"overrides": {}, **block, **placed, "ideas": ideas}, name)
        league: League = _filled(cls, {**content, "families": families}, path.name)
        if not (isinstance(league.seeds, list) and all(isinstance(seed, int) for seed in league.seeds)):
            raise BadInput(f"{path.name}: seeds is a list of whole numbers, not {league.seeds!r}.")
        return league


def _map(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise BadInput(f"{where} must be a map of keys, not {value!r}.")
    return value or {}


def _near(path: Path, files: Sequence[str]) -> list[str]:
    """Files named from the folder of another."""
    if not isinstance(files, list):
        raise BadInput(f"{path.name}: files are a list, not {files!r}.")
    return [os.path.normpath(path.parent / file) for file in files]


def _filled(kind: Any, content: Mapping[str, Any], where: str) -> Any:
    if not isinstance(content, Mapping):
        raise BadInput(f"{where} must be a map of keys, not {content!r}.")
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if wrong := sorted(content.keys() - known):
        raise BadInput(f"{where} has no key {wrong[0]!r}: it takes {', '.join(sorted(known))}.")
    if missing := sorted(needed - content.keys()):
        raise BadInput(f"{where} needs {', '.join(missing)}.")
    return kind(**content)


@dataclass(frozen=True)
class Entry:
    """One run of the league. Its folder carries the digest, so a run of another configuration is another folder."""

    family: str
    name: str
    seed: int
    config: dict[str, Any]
    digest: str

    @property
    def root(self) -> Path:
        return Path(self.config["trainer"]["default_root_dir"])

    def is_row(self, row: Row) -> bool:
        """Whether a row is of this run, whatever its digest."""
        return (row["family"], row["name"], row["seed"]) == (self.family, self.name, self.seed)


def entries_of(league: League, data: str, out: Path) -> Iterator[Entry]:
    """Every run, in the order of the file; each idea comes after the base's runs.

    Raises:
        BadInput: a configuration that does not compose, or an idea that changes nothing.
    """
    settings = (league.classifier_steps, league.samples, league.probe_steps)
    for name, family in league.families.items():
        given = _words(family.overrides)
        if family.tokenizer is None:
            given += ["--define.source", data]
        else:
            folder, _ = tokenizer_of(family, name, data, out)
            given += ["--define.cache", f"{folder}/tokens", "--define.tokenizer", f"{folder}/stage1/artifact"]
        done = set()
        for idea, entry in family.ideas.items():
            for run, seed, config in plan(family.base, [",".join(entry.files)], [], league.seeds, out / name, given):
                called = run if run == BASE else idea
                if (called, seed) in done:
                    continue
                done.add((called, seed))
                digest = digest_of(config, out, *settings)
                config["trainer"]["default_root_dir"] = str(out / name / called / f"seed-{seed}-{digest}")
                yield Entry(name, called, seed, config, digest)


def tokenizer_of(family: Family, name: str, data: str, out: Path) -> tuple[Path, dict[str, Any]]:
    """Where the tokenizer of a family of generators and its tokens are, and its configuration."""
    assert family.tokenizer is not None
    given = [*_words(family.tokenizer_overrides or {}), "--define.source", data]
    folder = out / name / f"tokenizer-{digest_of(compose_run(family.tokenizer, given), out)}"
    return folder, compose_run(family.tokenizer, [*given, "--define.run", str(folder)])


def _words(overrides: Mapping[str, Any]) -> list[str]:
    return [word for key, value in overrides.items() for word in (f"--{key}", json.dumps(value))]


def digest_of(config: Mapping[str, Any], out: Path, *settings: Any) -> str:
    """Of what decides a run: its configuration, in whatever folder, the sources of its classes, and the settings."""
    decisive = {key: config["trainer"].get(key) for key in ("precision", "max_steps")}
    parts = _placed([config["model"], config["data"], decisive, settings], str(out))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in sorted(set(class_paths(config["model"]))):
        file = inspect.getsourcefile(import_class(name))
        digest.update(f"{name} {sha256(file) if file else ''}".encode())
    return digest.hexdigest()[:12]


def _placed(value: Any, out: str) -> Any:
    """With OUT in place of the folder in all paths."""
    if isinstance(value, Mapping):
        return {key: _placed(item, out) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placed(item, out) for item in value]
    return "OUT" + value.removeprefix(out) if isinstance(value, str) and value.startswith(f"{out}/") else value


def run_league(
    league: League, data: str, out: Path, results: Path, hours: float, renew: bool, only: Sequence[str] | None = None
) -> list[str]:
    """Trains and measures what is missing, and writes `results`.json, .md and .png after every run.

    Args:
        data: spec of the pictures.
        out: where the runs are.
        hours: no run but the first begins that would end after so many.
        renew: train again what has rows of another configuration or source; else these rows are marked stale.
        only: names of ideas; None for all.

    Returns:
        what was left undone, a sentence each.
    """
    kept = results.with_suffix(".json")
    with alone_in(out):
        rows: list[Row] = read_rows(kept)

        def write() -> None:
            write_json(kept, {"rows": rows, "command": command(), "machine": machine()})
            write_page(league.families, rows, results)

        entries = list(entries_of(league, data, out))
        for entry in entries:
            for row in filter(entry.is_row, rows):
                row["stale"] = row["digest"] != entry.digest
        write()
        wanted = [entry for entry in entries if only is None or entry.name in (BASE, *only)]
        if only is not None:  # no base without an idea
            families = {entry.family for entry in wanted if entry.name != BASE}
            wanted = [entry for entry in wanted if entry.family in families]
        costs: dict[tuple[str, str], dict[str, float]] = {}
        missing = []
        for entry in wanted:
            known = [row for row in rows if entry.is_row(row)]
            if not known or (renew and known[0]["stale"]):
                missing.append(entry)
                if (entry.family, entry.name) not in costs:
                    costs[entry.family, entry.name] = cost_of(entry.config)
        flops = [costs[entry.family, entry.name]["flops_a_step"] * total_steps(entry.config) for entry in missing]
        pace, start, left = pace_of(rows), time.perf_counter(), 0
        print(
            f"{len(wanted)} runs, {len(missing)} to train: about {sum(flops) / pace / 3600:.1f} hours"
            f"{'' if rows else ', by the speed of matrix products'}; the budget is {hours:g}.",
            flush=True,
        )
        judges: dict[str, Judge] = {}
        for number, (entry, work) in enumerate(zip(missing, flops, strict=True), start=1):
            began = time.perf_counter()
            if number > 1 and began - start + work / pace > hours * 3600:
                left += 1
                continue
            print(f"{number} of {len(missing)}: {entry.family} {entry.name}, seed {entry.seed}", flush=True)
            if entry.family not in judges:
                judges[entry.family] = judge_of(league, entry.family, data, out)
                began = time.perf_counter()
            row = row_of(entry, judges[entry.family]) | costs[entry.family, entry.name]
            row |= {"flops": work, "wall": time.perf_counter() - began}
            rows[:] = [other for other in rows if not entry.is_row(other)] + [row]
            pace = pace_of(rows)
            write()
    notes = [f"{row['family']} {row['name']}, seed {row['seed']}: {row['failed']}" for row in rows if row.get("failed")]
    if left:
        notes.append(f"{left} runs do not fit into the {hours:g} hours: run the command again.")
    if stale := sum(row["stale"] for row in rows):
        notes.append(f"{stale} rows are of another configuration or source: --renew trains them again.")
    return notes


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier start, if there are any.

    Raises:
        BadInput: the file is another one.
    """
    content = read_json(path) if path.is_file() else {"rows": []}
    if not isinstance(content.get("rows"), list) or not all(
        {"family", "digest"} <= row.keys() for row in content["rows"]
    ):
        raise BadInput(f"{path} holds no rows of a league: give --results another name.")
    rows: list[Row] = content["rows"]
    return rows


def row_of(entry: Entry, judge: Judge) -> Row:
    """Trains and measures one run; `failed` is the sentence if it cannot be finished, e.g. because it diverges."""
    from alitok.training.launch import run as launch

    row = {"family": entry.family, "name": entry.name, "seed": entry.seed, "digest": entry.digest, "stale": False}
    try:
        launch("fit", copy.deepcopy(entry.config))
        judge.measure(entry.config, entry.root)
    except BadInput as error:
        return row | {"seconds": None, "failed": str(error)}
    (run,) = open_runs([entry.root])
    return row | {"seconds": training_seconds(entry.root), **measures(run)}


def judge_of(league: League, name: str, data: str, out: Path) -> Judge:
    """What measures a family; trains the classifier and the tokenizer of a family of generators if they are missing."""
    from alitok.common.devices import pick_device

    family, device = league.families[name], pick_device("auto")
    if family.tokenizer is None:
        config, artifact = compose_run(family.base), None
    else:
        folder, config = tokenizer_of(family, name, data, out)
        artifact = str(folder / "stage1" / "artifact")
        print(f"{name}: the tokenizer and its tokens", flush=True)
        _train_tokenizer(config, data, folder)
    size, steps = int(config["data"]["init_args"]["image_size"]), league.classifier_steps
    classifier = out / f"classifier-{hashlib.sha256(f'{data} {size} {steps}'.encode()).hexdigest()[:12]}"
    if not classifier.exists():
        _train_classifier(data, size, steps, classifier, device)
    judging = Judging(str(classifier), data, artifact, league.samples, probe_steps=league.probe_steps)
    return (TokenizerJudge if artifact is None else GeneratorJudge)(judging, device)


def _train_tokenizer(config: dict[str, Any], data: str, folder: Path) -> None:
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.data.encoding import is_finished, job, tokenize
    from alitok.data.sources import open_source
    from alitok.training.launch import run as launch

    launch("fit", config)
    tokenizer = load_tokenizer(folder / "stage1" / "artifact", pick_device("auto"))
    source = open_source(data, "train", size=tokenizer.image_size)
    if not is_finished(folder / "tokens", job(tokenizer, source, "center", "32-true"), source):
        tokenize(tokenizer, source, folder / "tokens", crops="center", precision="32-true")


def _train_classifier(data: str, size: int, steps: int, folder: Path, device: Any) -> None:
    from alitok.data.reading import read_all
    from alitok.data.sources import open_source
    from alitok.evaluation.classifier import train_and_save

    source = open_source(data, "train", size=size)
    images, labels = read_all(source, size)
    train_and_save(images, labels, len(source.class_names), folder, steps, 24, device)


def pace_of(rows: Sequence[Row]) -> float:
    """FLOPs a second, measuring included, of the rows; without any, a share of what matrix products reach."""
    from alitok.common.hardware import measure_cpu

    timed = [row for row in rows if row["seconds"]]
    if timed:
        return float(sum(row["flops"] for row in timed) / sum(row["wall"] for row in timed))
    return UNTIMED * measure_cpu().rate("bfloat16")

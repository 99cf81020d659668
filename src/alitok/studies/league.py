"""The league: compares many ideas with their bases over the same seeds, in one table of differences."""

import copy
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from alitok.common.ends import alone_in
from alitok.common.errors import BadInput
from alitok.common.files import no_room, write_json
from alitok.config import compose_run, load_yaml
from alitok.reports.differences import BASE
from alitok.reports.league import Family, Idea, write_page
from alitok.reports.provenance import command, machine
from alitok.reports.runs import open_runs, read_json, training_seconds
from alitok.studies.judges import Judge, Judging, open_judge
from alitok.studies.trial import class_digests, cost_of, measures, plan, trains_tokenizer
from alitok.training.launch import total_steps

# Width and seed of the classifiers: one measures, some ideas learn from the features of the other.
CLASSIFIERS = {"classifier": (24, 0), "teacher": (32, 1)}
UNTIMED = 0.3  # assumed share of the machine's peak, until a run has been timed here

Row = dict[str, Any]


@dataclass(frozen=True)
class League:
    """The content of `experiments/league/league.yaml`.

    Attributes:
        seeds: seeds of every idea and base.
        classifier_steps: training steps of the classifiers.
        samples: number of samples per gFID.
        probe_steps: training steps of the small generator that learns a tokenizer's tokens.
    """

    seeds: list[int]
    classifier_steps: int
    samples: int
    probe_steps: int
    families: dict[str, Family]

    @classmethod
    def load(cls, path: Path) -> "League":
        """Read the file; its paths are relative to its folder.

        Raises:
            BadInput: missing or unknown keys.
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
    """Resolve files relative to the folder of another file."""
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
    """One run of the league. Its folder's name has the digest, so another configuration has another folder."""

    family: str
    name: str
    seed: int
    config: dict[str, Any]
    digest: str

    @property
    def root(self) -> Path:
        return Path(self.config["trainer"]["default_root_dir"])

    def is_row(self, row: Row) -> bool:
        """Whether a row belongs to this run, with any digest."""
        return (row["family"], row["name"], row["seed"]) == (self.family, self.name, self.seed)


def entries_of(league: League, data: str, out: Path) -> Iterator[Entry]:
    """Every run, in the order of the file; each idea follows the base's run with its seed.

    Raises:
        BadInput: a configuration that does not compose, or an idea that changes nothing.
    """
    settings = (league.classifier_steps, league.samples, league.probe_steps)

    def entry_of(name: str, called: str, seed: int, config: dict[str, Any]) -> Entry:
        digest = digest_of(config, out, *settings)
        root = out / name / called / f"seed-{seed}-{digest}"
        return Entry(name, called, seed, _moved(config, config["trainer"]["default_root_dir"], str(root)), digest)

    for name, family in league.families.items():
        given = _words(family.overrides)
        if family.tokenizer is not None:
            given += ["--define.run", str(tokenizer_of(family, data, out)[0])]
        if trains_tokenizer(compose_run(family.base)):
            given += ["--define.source", data]
        else:
            given += ["--define.tokenizer", "${define.run}/stage1/artifact"]
        teacher = str(_classifier("teacher", league, family, data, out))
        bases: dict[int, str] = {}  # seed -> folder
        for idea, what in family.ideas.items():
            for seed in league.seeds:
                if seed not in bases:
                    ((_, _, config),) = plan(family.base, [], [], [seed], out / name, given)
                    base = entry_of(name, BASE, seed, config)
                    bases[seed] = str(base.root)
                    yield base
                own = [
                    word.replace("{base}", bases[seed]).replace("{teacher}", teacher)
                    for word in _words(what.overrides or {})
                ]
                _, (_, _, config) = plan(family.base, [",".join(what.files)], [], [seed], out / name, [*given, *own])
                yield entry_of(name, idea, seed, config)


def tokenizer_of(family: Family, data: str, out: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the configuration of the tokenizer that a family starts from."""
    assert family.tokenizer is not None
    given = [*_words(family.tokenizer_overrides or {}), "--define.source", data]
    folder = out / f"tokenizer-{digest_of(compose_run(family.tokenizer, given), out)}"
    return folder, compose_run(family.tokenizer, [*given, "--define.run", str(folder)])


def _words(overrides: Mapping[str, Any]) -> list[str]:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    return [word for key, text in texts.items() for word in (f"--{key}", text)]


def digest_of(config: Mapping[str, Any], out: Path, *settings: Any) -> str:
    """A digest of what decides a run: configuration without its folder, sources of its classes, and settings."""
    decisive = {key: config["trainer"].get(key) for key in ("precision", "max_steps")}
    if average := (config["trainer"].get("callbacks") or {}).get("average"):
        decisive["average"] = average
    parts = _moved([config["model"], config["data"], decisive, settings], str(out), "OUT")
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, source in class_digests(config).items():
        digest.update(f"{name} {source}".encode())
    return digest.hexdigest()[:12]


def _moved(value: Any, folder: str, to: str) -> Any:
    """Replace the folder in all paths that are it or lie in it."""
    if isinstance(value, Mapping):
        return {key: _moved(item, folder, to) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(item, folder, to) for item in value]
    return to + value.removeprefix(folder) if isinstance(value, str) and f"{value}/".startswith(f"{folder}/") else value


def run_league(
    league: League, data: str, out: Path, results: Path, hours: float, renew: bool, only: Sequence[str] | None = None
) -> list[str]:
    """Train and measure what is missing; write `results`.json, .md and .png after every run.

    Args:
        data: data spec of the pictures.
        out: folder of the runs.
        hours: budget; a run starts only if it should end within it, except the first.
        renew: retrain runs that failed or whose rows come from another configuration or source, which are marked stale.
        only: names of ideas; None for all.

    Returns:
        one sentence for each failed, remaining or stale group of runs.
    """
    kept = results.with_name(f"{results.name}.json")
    with alone_in(out):
        rows: list[Row] = read_rows(kept)

        def write() -> None:
            write_json(kept, {"rows": rows, "command": command(), "machine": machine()})
            write_page(league.families, rows, results, [f"Made by `{command()}`.", f"Machine: {machine()}."])

        # rows of seeds that the list no longer names count too, while they are of this configuration
        earlier = sorted({row["seed"] for row in rows} - set(league.seeds))
        entries = list(entries_of(replace(league, seeds=[*league.seeds, *earlier]), data, out))
        for entry in entries:
            for row in filter(entry.is_row, rows):
                row["stale"] = row["digest"] != entry.digest
        write()
        entries = [entry for entry in entries if entry.seed in league.seeds]
        wanted = [entry for entry in entries if only is None or entry.name in (BASE, *only)]
        if only is not None:  # families without a chosen idea are dropped
            families = {entry.family for entry in wanted if entry.name != BASE}
            wanted = [entry for entry in wanted if entry.family in families]
        costs: dict[tuple[str, str], dict[str, float]] = {}
        missing = []
        for entry in wanted:
            known = [row for row in rows if entry.is_row(row)]
            new = not known or (renew and (known[0]["stale"] or known[0].get("failed")))
            if entry.name == BASE and not new and known[0]["stale"]:  # what its ideas lack is compared with it
                others = [one for one in wanted if (one.family, one.seed) == (entry.family, entry.seed)]
                new = any(not any(one.is_row(row) for row in rows) for one in others)
            if new:
                missing.append(entry)
                if (entry.family, entry.name) not in costs:
                    costs[entry.family, entry.name] = cost_of(entry.config)
        a_step = {key: cost.get("flops_a_step", 0) for key, cost in costs.items()}
        flops = [a_step[entry.family, entry.name] * total_steps(entry.config) for entry in missing]
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
            # the whole training, also if an earlier start did a part of it
            row |= {"flops": work, "wall": max(time.perf_counter() - began, row["seconds"] or 0)}
            rows[:] = [other for other in rows if not entry.is_row(other)] + [row]
            pace = pace_of(rows)
            write()
    notes = [f"{row['family']} {row['name']}, seed {row['seed']}: {row['failed']}" for row in rows if row.get("failed")]
    if left:
        notes.append(f"{left} runs do not fit into the {hours:g} hours: run the command again.")
    if stale := sum(row["stale"] for row in rows):
        notes.append(
            f"{stale} rows are of another configuration or source: --renew trains those again that the list names."
        )
    return notes


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier start, if there are any.

    Raises:
        BadInput: the file is no league's.
    """
    content = read_json(path) if path.is_file() else {"rows": []}
    if not isinstance(content.get("rows"), list) or not all(
        {"family", "digest"} <= row.keys() for row in content["rows"]
    ):
        raise BadInput(f"{path} holds no rows of a league: give --results another name.")
    rows: list[Row] = content["rows"]
    return rows


def row_of(entry: Entry, judge: Judge) -> Row:
    """Train and measure one run; `failed` is the error's sentence if it cannot finish, e.g. because it diverges."""
    from alitok.training.launch import run as launch

    row = {"family": entry.family, "name": entry.name, "seed": entry.seed, "digest": entry.digest, "stale": False}
    try:
        launch("fit", copy.deepcopy(entry.config))
        judge.measure(entry.config, entry.root)
        found = measures(*open_runs([entry.root]))
    except BadInput as error:
        if no_room(error):
            raise
        return row | {"seconds": None, "failed": str(error)}
    return row | {"seconds": training_seconds(entry.root), **found}


def judge_of(league: League, name: str, data: str, out: Path) -> Judge:
    """The judge of a family. Trains what it needs if missing: classifiers, and the tokenizer that it starts from."""
    from alitok.common.devices import pick_device
    from alitok.training.launch import run as launch

    family, device = league.families[name], pick_device("auto")
    config, artifact = compose_run(family.base), None
    tokenizers = trains_tokenizer(config)
    if family.tokenizer is not None:
        folder, config = tokenizer_of(family, data, out)
        print(f"{name}: the tokenizer", flush=True)
        launch("fit", config)
        if not tokenizers:
            artifact = str(folder / "stage1" / "artifact")
            _tokenize(artifact, data, folder / "tokens")
    for kind in ["classifier", "teacher"] if "{teacher}" in str(family.ideas) else ["classifier"]:
        if not (place := _classifier(kind, league, family, data, out)).exists():
            print(f"{place}: a classifier of the pictures", flush=True)
            _train_classifier(data, _image_size(family), league.classifier_steps, place, device, *CLASSIFIERS[kind])
    # decoders of one tokenizer share its tokens, so the tokens are not probed
    probe_steps = league.probe_steps if family.tokenizer is None else 0
    classifier = str(_classifier("classifier", league, family, data, out))
    judging = Judging(classifier, data, artifact, league.samples, probe_steps=probe_steps)
    return open_judge(judging, tokenizers, device)


def _tokenize(artifact: str, data: str, cache: Path) -> None:
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.data.encoding import is_finished, job, tokenize
    from alitok.data.sources import open_source

    tokenizer = load_tokenizer(artifact, pick_device("auto"))
    source = open_source(data, "train", size=tokenizer.image_size)
    if not is_finished(cache, job(tokenizer, source, "center", "32-true"), source):
        tokenize(tokenizer, source, cache, crops="center", precision="32-true")


def _image_size(family: Family) -> int:
    return int(compose_run(family.tokenizer or family.base)["data"]["init_args"]["image_size"])


def _classifier(kind: str, league: League, family: Family, data: str, out: Path) -> Path:
    """The folder of a classifier of the family's pictures."""
    decisive = f"{data} {_image_size(family)} {league.classifier_steps}"
    return out / f"{kind}-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"


def _train_classifier(data: str, size: int, steps: int, folder: Path, device: Any, width: int, seed: int) -> None:
    from alitok.data.reading import read_all
    from alitok.data.sources import open_source
    from alitok.evaluation.classifier import train_and_save

    source = open_source(data, "train", size=size)
    images, labels = read_all(source, size)
    train_and_save(images, labels, len(source.class_names), folder, steps, width, device, seed=seed)


def pace_of(rows: Sequence[Row]) -> float:
    """FLOP/s of the rows, including measuring; without rows, a share of the rate of matrix products."""
    from alitok.common.hardware import measure_cpu

    timed = [row for row in rows if row["seconds"] and row["flops"]]
    if timed:
        return float(sum(row["flops"] for row in timed) / sum(row["wall"] for row in timed))
    cpu = measure_cpu()
    return UNTIMED * max(cpu.half, cpu.single)

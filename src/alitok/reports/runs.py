"""Runs on disk, finished or not: their configurations, differences, numbers and costs."""

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alitok.common.errors import BadInput
from alitok.reports.curves import Curve, read_curves

ABSENT = "—"
# Keys in files of numbers that are no measures.
NO_MEASURES = {"seed", "steps", "seconds", "samples"}
# Files with numbers of a whole run: of the demo and of a rung of the ladder.
SUMMARIES = ("report", "row")


@dataclass
class Part:
    """One `alitok fit`: a folder with config.yaml."""

    root: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    card: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """ "generator" or "tokenizer"."""
        arguments = (self.config.get("model") or {}).get("init_args") or {}
        return "generator" if "generator" in arguments else "tokenizer"

    @property
    def artifact(self) -> Path:
        """Where the artifact is, or will be."""
        return self.root / "artifact"

    @property
    def seed(self) -> Any:
        return self.config.get("seed_everything")


@dataclass
class Run:
    """A folder with one part, or with several parts (stages) one level below."""

    name: str
    folder: Path
    parts: dict[str, Part]
    numbers: dict[str, float] = field(default_factory=dict)


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in folders that `alitok fit` made, or that hold such folders; names omit what all paths share.

    Raises:
        BadInput: a folder without a run, or one that is given twice.
    """
    paths = [Path(folder) for folder in folders]
    for index, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:index]]:
            raise BadInput(f"Run {path} is given twice.")
    return [
        Run(name, path, parts := _parts(path), _numbers(path, parts))
        for name, path in zip(_names(paths), paths, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """The paths without their common leading folders."""
    split = [path.resolve().parts for path in paths]
    shared = 0
    while all(shared < len(parts) - 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return ["/".join(parts[shared:]) for parts in split]


def _parts(folder: Path) -> dict[str, Part]:
    if not folder.is_dir():
        raise BadInput(f"Run {folder} is no folder.")
    if (folder / "config.yaml").is_file():
        part = _part(folder)
        return {part.kind: part}
    roots = sorted(file.parent for file in folder.glob("*/config.yaml") if (file.parent / "logs").is_dir())
    if not roots:
        raise BadInput(f"{folder} holds no run: there is no config.yaml in it or one level below; name a fit's folder.")
    return {root.name: _part(root) for root in roots}


def _part(root: Path) -> Part:
    file = root / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), Mapping):
        raise BadInput(f"{file} is no configuration of a run: it has no model.")
    card = root / "artifact" / "card.json"
    return Part(root, config, read_curves(root), read_json(card) if card.is_file() else None)


def parse_seeds(text: str) -> list[int]:
    """The seeds that --seeds names ("0,1"), each once.

    Raises:
        BadInput: one is no whole number.
    """
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError as error:
        raise BadInput(f"--seeds takes whole numbers and commas, not {text!r}.") from error


def parse_scales(text: str) -> list[float]:
    """The guidance scales that --guidance names ("0,2.5").

    Raises:
        BadInput: one is no number of 0 or more.
    """
    try:
        scales = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--guidance takes numbers and commas, not {text!r}.") from error
    if not all(0 <= scale < math.inf for scale in scales):
        raise BadInput(f"--guidance takes scales of 0 or more, not {text!r}.")
    return scales


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raises BadInput if the file holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} is no readable JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file} holds no JSON object.")
    return content


# Numbers


def _numbers(folder: Path, parts: Mapping[str, Part]) -> dict[str, float]:
    """The numbers in the folder's JSON files (report.json, those of `alitok evaluate`) and in the artifacts' cards.

    An unfinished part has no card; the last values of its validation curves are used.
    """
    numbers = {}
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stem not in SUMMARIES, file.name))
    for file in files:
        prefix = "" if file.stem in SUMMARIES else f"{file.stem}: "
        if file.stem != "seconds":
            for metric, value in _scalars(read_json(file)):
                numbers[prefix + metric] = value
    for name, part in parts.items():
        last = {
            metric.removeprefix("val/"): points[-1][1] for metric, points in part.curves.items() if "val/" in metric
        }
        for metric, value in _scalars(last if part.card is None else part.card.get("metrics") or {}):
            numbers[f"{name}: {metric}"] = value
    return numbers


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in NO_MEASURES:
            yield name, value


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and, of two or more, the standard deviation (n - 1). Both are NaN if a value is not finite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


@dataclass
class Spent:
    """The cost of a part; None if unknown."""

    steps: int | None
    images: int | None
    seconds: float | None
    parameters: int | None


def spent(part: Part) -> Spent:
    """Steps and images from the card (or the last logged step), seconds from logs, parameters from the weight file."""
    card = part.card or {}
    logged = max((points[-1][0] for points in part.curves.values() if points), default=None)
    weights = part.artifact / "model.safetensors"
    return Spent(
        steps=card.get("steps") or logged,
        images=card.get("images_seen"),
        seconds=training_seconds(part.root),
        parameters=count_parameters(weights) if weights.is_file() else None,
    )


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file, read from its header."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping


def training_seconds(root: Path) -> float | None:
    """Wall time of a fit, from the first to the last entry of each TensorBoard log, summed over resumptions."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    total, found = 0.0, False
    for file in root.glob("logs/*/events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
        if times:
            total, found = total + max(times) - min(times), True
    return total if found else None


# Configurations


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, `init_args` left out of the keys, as on the command line."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, Mapping) and value:
            for name, item in value.items():
                walk(item, key if name == "init_args" and "class_path" in value else f"{key}.{name}".lstrip("."))
        else:
            flat[key] = value

    walk(config, "")
    return flat


def differences(parts: Sequence[Part | None]) -> dict[str, list[Any]]:
    """Key -> its value in each part (`ABSENT` if it has none), for the keys in which the parts differ.

    Paths count as equal if they are equal relative to each part's folder, and seeds if they equal `seed_everything`,
    which is listed itself.
    """
    flat = [flatten(part.config) if part is not None else {} for part in parts]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = {}
    for key in keys:
        values = [values.get(key, ABSENT) for values in flat]
        forms = [_forms(part, key, value) for part, value in zip(parts, values, strict=True) if part is not None]
        if any(forms[0][0] != raw and forms[0][1] != moved for raw, moved in forms[1:]):
            found[key] = values
    return found


def _forms(part: Part, key: str, value: Any) -> tuple[str, str]:
    """A value as JSON, and in a form that does not depend on the run's folder or seed."""
    raw = json.dumps(value, default=str)
    if key.endswith(".seed") and value == part.seed:
        return raw, "seed_everything"
    root = (part.config.get("trainer") or {}).get("default_root_dir")
    if isinstance(value, str) and isinstance(root, str) and "/" in value:
        first = [next((name for name in Path(text).parts if name != "/"), None) for text in (value, root)]
        if first[0] == first[1] and Path(value).is_absolute() == Path(root).is_absolute():
            return raw, "path " + os.path.relpath(value, root)
    return raw, raw


def same_but_seed(a: Run, b: Run) -> bool:
    """Whether two runs differ in `seed_everything` only."""
    return a.parts.keys() == b.parts.keys() and all(
        set(differences([a.parts[name], b.parts[name]])) <= {"seed_everything"} for name in a.parts
    )


def group(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that differ by seed only, in the given order."""
    groups: list[list[Run]] = []
    for run in runs:
        for members in groups:
            if same_but_seed(members[0], run):
                members.append(run)
                break
        else:
            groups.append([run])
    return groups


def group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group: what its members' names share, else all names; with the number of seeds."""
    names = []
    for members in groups:
        split = [set(run.name.split("/")) for run in members]
        shared = [word for word in members[0].name.split("/") if all(word in words for words in split)]
        name = "/".join(shared) if len(members) > 1 and shared else ", ".join(run.name for run in members)
        names.append(f"{name} ({len(members)} seeds)" if len(members) > 1 else name)
    first = [members[0].name for members in groups]
    return names if len(set(names)) == len(names) else first

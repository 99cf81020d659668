"""What 0.1 left behind (`files/`, the JSON files next to it), and how it is compared with what the present code does.

Two processors round sums differently, so no comparison of floats is exact. Where a value has changed for a reason,
`changed.json` gives the new one: {"KIND/NAME": {"value": ..., "why": "..."}}, or {"file": PATH, "why": "..."} for a
file of tensors. KIND/NAME may be a pattern (`stacks/*demo*`), and `KIND/NAME#a.b.c` replaces one entry of a map; the
value null removes it. {"values": {"a.b.c": ..., ...}, "why": "..."} replaces several entries.
"""

import csv
import fnmatch
import functools
import json
import lzma
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import alitok
from alitok.cli import run as alitok_run
from alitok.common.build import import_class
from alitok.config import compose_run

HERE = Path(__file__).parent
FILES = HERE / "files"
ROOT = HERE.parents[1]
# Of the norm of all that is compared. The same code on two processors differs by less, see README.md.
TOLERANCE = 1e-5

DRIFT = 3e-5  # of a loss after updates; two processors differ by up to 1.5e-5
LOSS_FLOOR = 1e-7  # a loss of nearly zero is a difference of larger numbers
# Not losses. Two codes may lie on one another, and which of them is counted is then up to rounding.
LEFT_OUT = ("norm", "/lr", "/codebook_usage", "/codebook_perplexity")

__all__ = ["FILES", "HERE", "ROOT", "TOLERANCE", "alitok_run", "compose_run"]


def read_json(name: str) -> Any:
    return json.loads((HERE / name).read_text("utf-8"))


CHANGED: dict[str, dict[str, Any]] = read_json("changed.json") if (HERE / "changed.json").is_file() else {}


def kept(kind: str, name: str, value: Any) -> Any:
    """The value of 0.1, or what `changed.json` puts in its place."""
    for pattern, entry in CHANGED.items():
        place, _, path = pattern.partition("#")
        if place != f"{kind}/{name}" and not fnmatch.fnmatchcase(f"{kind}/{name}", place):
            continue
        assert entry.get("why"), f"changed.json: {pattern} does not say why"
        if "values" in entry:
            for place, new in entry["values"].items():
                value = _replaced(value, place.split("."), new)
            continue
        new = HERE / entry["file"] if "file" in entry else entry["value"]
        value = _replaced(value, path.split("."), new) if path else new
    return value


def _replaced(value: Mapping[str, Any], path: list[str], new: Any) -> dict[str, Any]:
    name, *rest = path
    entry = _replaced(value.get(name, {}), rest, new) if rest else new
    return {**{key: item for key, item in value.items() if key != name}, **({} if entry is None else {name: entry})}


def differences(old: Any, new: Any, where: str = "", floor: float = 0.0, tolerance: float = TOLERANCE) -> list[str]:
    """Places where two JSON values differ: floats by more than rounding, classes that are not the same object.

    Args:
        floor: how much any two floats may differ by.
        tolerance: the share of its size that a float may differ by.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [f"{where}.{key} is absent" for key in old if key not in new]
        lines += [f"{where}.{key} is new" for key in new if key not in old]
        if where.endswith("phases") and not lines and list(old) != list(new):
            lines.append(f"{where}: the order {list(old)} became {list(new)}")
        return lines + [
            line
            for key in old
            if key in new
            for line in differences(old[key], new[key], f"{where}.{key}", floor, tolerance)
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{where}[{i}]", floor, tolerance)]
    if where.endswith(".class_path") and isinstance(old, str) and isinstance(new, str) and old != new:
        return [] if import_class(old) is import_class(new) else [f"{where}: {old} is not {new}"]
    if isinstance(old, float) and isinstance(new, float | int):
        return [] if new == pytest.approx(old, rel=tolerance, abs=floor) else [f"{where}: {old} became {new}"]
    return [] if old == new and isinstance(old, bool) == isinstance(new, bool) else [f"{where}: {old!r} became {new!r}"]


def furthest(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """Norm of the difference of two sets of tensors, as a share of the norm of the first."""
    assert old.keys() == new.keys()
    assert all(tensor.shape == new[name].shape and tensor.dtype == new[name].dtype for name, tensor in old.items())
    apart, norm = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    for name, tensor in old.items():
        apart += (new[name].double() - tensor.double()).square().sum()
        norm += tensor.double().square().sum()
    return float(apart.sqrt() / norm.sqrt())


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The entries of nested maps by their dotted paths."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        name: leaf for key, item in value.items() for name, leaf in leaves(item, f"{path}.{key}".lstrip(".")).items()
    }


def overlaid(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested map with other entries at some dotted paths; null removes one."""
    config: dict[str, Any] = {}
    for path, value in {**leaves(base), **changes}.items():
        if value is not None:
            *parents, name = path.split(".")
            functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, config)[name] = value
    return config


def lay_out(folder: Path, *names: str) -> None:
    """Copies files or folders of `files/` to the same place below `folder`."""
    for name in names:
        source, target = FILES / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)


def unpack(name: str, target: Path) -> None:
    """A checkpoint of `files/checkpoints`, which is compressed there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.decompress((FILES / "checkpoints" / f"{name}.ckpt.xz").read_bytes()))


def weights(artifact: Path) -> dict[str, Tensor]:
    """The tensors of an artifact, those of a discriminator that travels with it too."""
    files = sorted(artifact.glob("*.safetensors"))
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def logged(run: Path, first: int = 0) -> dict[str, list[float]]:
    """Losses of a run from step `first` on, by name, from its CSV log."""
    values: dict[str, list[float]] = {}
    for file in sorted(run.glob("logs/*/metrics.csv")):
        with open(file, newline="") as handle:
            for row in csv.DictReader(handle):
                for name, text in row.items():
                    used = text and name.startswith("train/") and not name.endswith(LEFT_OUT)
                    if used and int(row["step"]) >= first:
                        values.setdefault(name, []).append(float(f"{float(text):.9g}"))  # float32
    return values


@torch.no_grad()
def outputs(artifact: Path, given: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What an artifact makes of the arrays in `given`: ids and pixels of a tokenizer, logits and ids of a generator."""
    if "images" in given:
        tokenizer = alitok.load_tokenizer(artifact)
        images = torch.as_tensor(given["images"]).float() / 255
        ids = tokenizer.encode(images)
        made = {"latents": tokenizer.encode_latents(images), "ids": ids, "pixels": tokenizer.decode(ids)}
        if "keep" in given:
            made["pixels_of_first"] = tokenizer.decode(ids[:, : int(given["keep"])])
    else:
        generator = alitok.load_generator(artifact)
        ids, labels = (torch.as_tensor(given[name]).long() for name in ("tokens", "labels"))
        made = {"logits": generator(ids, labels), "drawn": alitok.generate(generator, labels, seed=3)}
        made["guided"] = alitok.generate(generator, labels, guidance=4.0, power=1.5, temperature=0.9, seed=4)
    return {name: tensor.numpy() for name, tensor in made.items()}


def random_cache(folder: Path, shape: list[int], codes: int) -> None:
    """A token cache as other programs write it, without metadata: ids (images, views, N) or (images, views, N, S)."""
    import datasets

    ids = np.random.default_rng(0).integers(0, codes, shape)
    shutil.rmtree(folder, ignore_errors=True)
    columns = {"label": [image % 3 for image in range(len(ids))], "tokens": ids.tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))

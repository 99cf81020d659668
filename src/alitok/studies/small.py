"""Makes stacks of configurations small, so that they train in seconds, and prepares their inputs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alitok.artifacts.folder import read_card, save_artifact
from alitok.common.build import build, import_class, is_class_block, known_arguments
from alitok.common.errors import BadInput
from alitok.common.files import experiments_folder
from alitok.config import compose_run, load_yaml
from alitok.data.sources import fingerprint
from alitok.data.token_shards import write_token_cache
from alitok.ideas.post_training import PairedDataModule

SMALL = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0}
IMAGES, BATCH, STEPS = 16, 8, 3
Stack = tuple[Path, ...]


def stacks(idea: Path) -> list[Stack]:
    """Files to compose for each base that the idea's first line names: `# over: FILE ...`.

    Raises:
        BadInput: there is no such line, or a file is missing.
    """
    first = idea.read_text("utf-8", errors="replace").splitlines()[:1]
    if not first or not re.match(r"#\s*over:", first[0]):
        raise BadInput(f"{idea} must begin with `# over: FILE ...`, the configurations that it is laid over.")
    files = [_named(word, idea) for word in first[0].split("over:", 1)[1].replace(",", " ").split()]
    contents = {file: load_yaml(file) for file in files}
    bases = [file for file in files if all(is_class_block(contents[file].get(part)) for part in ("model", "data"))]
    if not bases:
        raise BadInput(f"{idea}: none of the files after `# over:` is a whole configuration.")
    between = [file for file in files if file not in bases]
    return [(base, *between, idea) for base in bases]


def _named(word: str, idea: Path) -> Path:
    for place in (experiments_folder() / word, experiments_folder().parent / word, idea.parent / word):
        if place.is_file():
            return place.resolve()
    raise BadInput(f"{idea} is laid over {word}, which is neither in experiments/ nor next to it.")


def small(config: dict[str, Any]) -> dict[str, Any]:
    """A composed configuration with small models, a few shapes, and random stand-ins for files of weights."""
    arguments, data = config["model"]["init_args"], config["data"]["init_args"]
    for part in ("tokenizer", "generator"):
        if isinstance(arguments.get(part), dict):
            arguments[part] = _reduced(arguments[part])
    arguments["warmup_steps"] = 0
    arguments["losses"] = {name: _standing_in(block) for name, block in (arguments.get("losses") or {}).items()}
    phases = list(arguments["phases"].items())
    for number, (_, phase) in enumerate(phases, 1):
        phase |= {"steps": 1 if number < len(phases) else max(2, STEPS - number + 1), "lr": 1e-3}
        if phase.get("fit"):
            phase["fit"] = min(phase["fit"], IMAGES // BATCH)
    if "source" in data:
        data |= {"source": "shapes", "count": IMAGES, "val_count": 4}
    data |= {"global_batch": BATCH, "micro_batch": None, "num_workers": 0}
    return config


def _reduced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: SMALL[key] if key in SMALL and item is not None else _reduced(item) for key, item in value.items()}
    return [_reduced(item) for item in value] if isinstance(value, list) else value


def _standing_in(block: Any) -> Any:
    """A loss term whose weight files are replaced by random networks."""
    if not is_class_block(block):
        return {key: _standing_in(item) for key, item in block.items()} if isinstance(block, dict) else block
    arguments = {key: _standing_in(item) for key, item in (block.get("init_args") or {}).items()}
    taken = known_arguments(import_class(block["class_path"])) or set()
    arguments |= {name: "random:0" for name in ("weights", "vgg_weights") if name in taken}
    return {**block, "init_args": arguments}


def prepare(config: Mapping[str, Any]) -> None:
    """Create the inputs of the small run: artifacts of earlier stages, and a token cache."""
    arguments, data = config["model"]["init_args"], config["data"]["init_args"]
    digest = "d" * 64
    parts = {"start_from": "generator" if "generator" in arguments else "tokenizer", "reference": "generator"}
    for key, part in parts.items():
        if isinstance(arguments.get(key), str):
            _put(arguments[key], arguments[part], part)
    guidance = arguments.get("schedule")
    if isinstance(guidance, dict) and "checkpoint" in (guidance.get("init_args") or {}):
        _put(guidance["init_args"]["checkpoint"], arguments["generator"], "generator")
    if isinstance(arguments.get("tokenizer"), str):  # in a generator's run, for terms that read the tokenizer's codes
        made = compose_run([experiments_folder() / "demo" / "tokenizer-stage2.yaml"])["model"]["init_args"]["tokenizer"]
        digest = _put(arguments["tokenizer"], _reduced(made), "tokenizer")
    if data.get("cache") is not None and not Path(data["cache"]).exists():
        model = build(arguments["generator"])
        write_ids(
            Path(data["cache"]), random_ids(model.id_shape, IMAGES + 4, model.codebook_size), model, digest=digest
        )
    paired = issubclass(import_class(config["data"]["class_path"]), PairedDataModule)
    if paired and not Path(data["pairs"]).exists():
        model, module = build(arguments["tokenizer"]), PairedDataModule(**data)
        source = module.open_split("train")
        ids = random_ids(
            (model.num_tokens,) if model.sub_codes == 1 else (model.num_tokens, model.sub_codes),
            len(source),
            model.codebook_size,
        )
        recipe, digest = {"sigma": 0.5}, str(read_card(Path(arguments["start_from"]))["digest"])
        write_ids(Path(module.pairs), ids, model, digest=digest, recipe=recipe, source=fingerprint(source))


def random_ids(shape: tuple[int, ...], images: int, codes: int) -> np.ndarray[Any, Any]:
    """(images, 2, N) or (images, 2, N, S): two views of random tokens."""
    return np.random.default_rng(0).integers(0, codes, (images, 2, *shape))


def write_ids(folder: Path, ids: np.ndarray[Any, Any], model: Any, **job: Any) -> None:
    """Write a token cache of ids (images, views, N, ...) with cycling labels."""
    job = {"digest": "d" * 64, "recipe": {}, "precision": "32", "source": "none", **job}
    names = [f"class {number}" for number in range(10)]
    rows = ((image % 10, views) for image, views in enumerate(ids))
    write_token_cache(folder, rows, codebook_size=model.codebook_size, class_names=names, **job)


def _put(folder: str, block: Mapping[str, Any], kind: str) -> str:
    """Save a random artifact if there is none; return its digest."""
    torch.manual_seed(1)
    if not Path(folder).exists():
        save_artifact(folder, block, build(block), {"kind": kind})
    return str(read_card(Path(folder))["digest"])

"""compose(files, overrides): the one way a configuration comes together, for every verb and the tests.

Files and overrides are merged deeply and in order before anything is resolved, so that a value which the data and the
model share through `${...}` is the same in both, whichever file changed it last.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alitok.common.build import import_class, is_class_block, known_arguments, misfit, nearest
from alitok.common.errors import BadInput
from alitok.common.files import experiments_folder

# What a run's configuration may hold; `define` is free: values that others refer to.
TOP_LEVEL = ("define", "seed_everything", "model", "data", "trainer", "ckpt_path")
DEFAULTS = Path(__file__).with_name("defaults.yaml")

# Since omegaconf 2.4 the one is called as the other was, and the other warns.
_newer = "replace" in inspect.signature(OmegaConf.register_resolver).parameters
_register: Any = OmegaConf.register_resolver if _newer else OmegaConf.register_new_resolver


def _add(a: int, b: int) -> int:
    return a + b


def _mul(a: int, b: int) -> int:
    return a * b


def _div(a: int, b: int) -> int:
    return a // b


for _name, _function in {"add": _add, "mul": _mul, "div": _div}.items():
    _register(_name, _function, replace=True)


def compose(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merges YAML files and `--key value` overrides, resolves interpolations once, and checks every key.

    Maps merge deeply; a block whose `class_path` changes keeps only the arguments that the new class knows; `key: null`
    removes the entry; lists and scalars are replaced. `${add:a,b}`, `${mul:a,b}` and `${div:a,b}` are integer sums.

    Args:
        files: paths, laid over one another in order.
        overrides: ["--a.b", "1", "--c=2", ...]; a dotted key may leave out `init_args`.

    Raises:
        BadInput: a file that is missing or no YAML map, an override without a value, an unknown key (with the nearest
            one), an interpolation that cannot be resolved.
    """
    config = resolve(files, overrides)
    check(config)
    return config


def resolve(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`compose` without the check of the keys, which imports every class that is named (Lightning too: seconds)."""
    merged: dict[str, Any] = {}
    for file in files:
        merge(merged, load_yaml(file))
    for key, value in parse_overrides(overrides):
        path = _full_path(merged, key)
        block: Any = value
        for name in reversed(path):
            block = {name: block}
        _check_path(merged, path, key)
        _check_define(merged, path, key)
        merge(merged, block)
    try:
        container = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        raise BadInput(f"Configuration key {key}: {str(error).splitlines()[0]}.") from error
    return cast(dict[str, Any], container)


def compose_run(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`compose` over the defaults that every training run shares (defaults.yaml beside this file).

    Raises:
        BadInput: as `compose`, or the files describe no run (`model` and `data`).
    """
    config = compose([DEFAULTS, *files], overrides)
    for part in ("model", "data"):
        if part not in config:
            raise BadInput(
                f"The configuration has no {part!r}: give -c FILE, e.g. experiments/demo/tokenizer-stage1.yaml."
            )
    return config


def load_yaml(file: str | Path) -> dict[str, Any]:
    """One YAML file as a plain map, interpolations untouched.

    A file experiments/... that is not here is the one that ships with the package, so that no repository is needed.

    Raises:
        BadInput: it is missing, no YAML or no map.
    """
    path = Path(file)
    if path.parts[:1] == ("experiments",) and not path.exists():
        shipped = experiments_folder().joinpath(*path.parts[1:])
        path = shipped if shipped.is_file() else path
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise BadInput(f"Cannot read configuration {file}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise BadInput(f"Configuration {file} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise BadInput(f"Configuration {file} holds no map of keys.")
    return cast(dict[str, Any], content)


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """["--a.b", "1", "--c=x"] -> [("a.b", 1), ("c", "x")], values read as YAML.

    Raises:
        BadInput: an argument that is no `--key`, or a key without a value.
    """
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise BadInput(f"Unexpected argument {word!r}: overrides are written --key value.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise BadInput(f"Override --{key} has no value.")
            text = rest.pop(0)
        try:
            # OmegaConf's reader, so that 1e-4 is a number here as it is in a file.
            value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise BadInput(f"Override --{key}: {text!r} is no valid YAML value.") from error
        pairs.append((key, value))
    return pairs


def merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    """Lays one map over another, in place, by the rules of `compose`."""
    for key, value in overlay.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, Mapping):
            under = base.get(key)
            under = dict(under) if isinstance(under, Mapping) else {}
            new_class = value.get("class_path")
            if new_class and under.get("class_path") not in (None, new_class):
                known = known_arguments(import_class(new_class))
                kept = under.get("init_args") or {}
                under["init_args"] = {k: v for k, v in kept.items() if known is None or k in known}
            merge(under, value)
            base[key] = under
        else:
            base[key] = value


def _full_path(merged: Mapping[str, Any], key: str) -> list[str]:
    """The path of a dotted key, with the `init_args` that it may leave out."""
    path: list[str] = []
    node: Any = merged
    for name in key.split("."):
        if is_class_block(node) and name not in ("class_path", "init_args"):
            path.append("init_args")
            node = node.get("init_args") or {}
        path.append(name)
        node = node.get(name) if isinstance(node, Mapping) else None
    return path


def _check_path(merged: Mapping[str, Any], path: list[str], key: str) -> None:
    """Refuses an override below something that is no map."""
    node: Any = merged
    for name in path[:-1]:
        node = node.get(name) if isinstance(node, Mapping) else None
        if node is not None and not isinstance(node, Mapping):
            raise BadInput(f"Override --{key}: {name} is a value, not a map, in this configuration.")


def _check_define(merged: Mapping[str, Any], path: list[str], key: str) -> None:
    """Refuses an override of a value that no file defines or refers to: it would change nothing."""
    if path[0] != "define" or len(path) == 1:
        return
    known = merged.get("define") or {}
    if path[1] not in known and f"define.{path[1]}" not in str(merged):
        raise BadInput(f"Override --{key}: no file defines or uses {path[1]!r}{nearest(path[1], known)}")


def check(config: Mapping[str, Any]) -> None:
    """Raises BadInput for the first key that nobody knows, with the nearest known one, or a missing argument."""
    for key in config:
        if key not in TOP_LEVEL:
            raise BadInput(f"Unknown configuration key {key!r}{nearest(key, TOP_LEVEL)}")
    for part in ("model", "data"):
        if part in config and not is_class_block(config[part]):
            raise BadInput(
                f"{part} needs a class_path: a file of changes is laid over a base, -c experiments/demo/"
                "tokenizer-stage1.yaml -c FILE (its first line may name others)."
            )
    if trainer := config.get("trainer"):
        from lightning import Trainer  # slow to import: only where a configuration has a trainer

        _check_arguments("trainer", trainer, known_arguments(Trainer.__init__) or set())
    _check_blocks(config, "")


def _check_arguments(where: str, arguments: Mapping[str, Any], known: set[str]) -> None:
    for key in arguments:
        if key not in known:
            raise BadInput(f"Unknown configuration key {where}.{key}{nearest(key, known)}")


def _check_blocks(value: Any, where: str) -> None:
    if is_class_block(value):
        for key in value:
            if key not in ("class_path", "init_args"):
                raise BadInput(f"Unknown configuration key {where}.{key}; arguments go under {where}.init_args.")
        target = import_class(value["class_path"])
        arguments = value.get("init_args") or {}
        known = known_arguments(target)
        if known is not None:
            _check_arguments(f"{where}.init_args", arguments, known)
            required = [
                name
                for name, parameter in inspect.signature(target).parameters.items()
                if parameter.default is parameter.empty
                and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            ]
            for name in required:
                if name not in arguments:
                    raise BadInput(f"Configuration key {where}.init_args.{name} is missing ({value['class_path']}).")
        if wrong := misfit(target, arguments):
            name, wanted = wrong
            raise BadInput(
                f"Configuration key {where}.init_args.{name} must be {wanted}, not {arguments[name]!r}"
                f" ({value['class_path']})."
            )
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_blocks(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_blocks(item, f"{where}[{index}]")

"""`compose(files, overrides)` makes every configuration, for the verbs and the tests.

It merges files and overrides deeply and in order before it resolves `${...}`. A value that data and model share is
therefore the same in both, no matter which file changed it last.

Every value keeps its written text until all is merged. Then it is read by the type of its argument
(`alitok.common.written`).
"""

import copy
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alitok.common.build import (
    argument_hints,
    import_class,
    is_class_block,
    known_arguments,
    moved_files,
    nearest,
    present,
)
from alitok.common.errors import BadInput
from alitok.common.files import experiments_folder
from alitok.common.keys import UnknownKey, check_arguments, check_blocks
from alitok.common.merge import Merged, opened
from alitok.common.written import Hints, Written, read_written

# The keys of a run's configuration. `define` takes any key: its values are for references.
TOP_LEVEL = ("define", "seed_everything", "model", "data", "trainer", "ckpt_path")
# Types of the arguments that are needed before the classes of model, data and trainer are imported.
_EARLY: Hints = {"seed_everything": int, "ckpt_path": str, "trainer": {"default_root_dir": str, "max_steps": int}}
_NULL = ("null", "Null", "NULL")
DEFAULTS = Path(__file__).with_name("defaults.yaml")

# omegaconf 2.4 renamed `register_new_resolver` to `register_resolver`; the old name warns.
_newer = "replace" in inspect.signature(OmegaConf.register_resolver).parameters
_register: Any = OmegaConf.register_resolver if _newer else OmegaConf.register_new_resolver


def _calculate(name: str, function: Callable[[int, int], int], one: Any, other: Any) -> int:
    if type(one) is not int or type(other) is not int or (name == "div" and other == 0):
        raise BadInput(f"${{{name}:{one},{other}}} cannot be calculated; give whole numbers and a divisor other than 0")
    return function(one, other)


for _name, _function in {"add": operator.add, "mul": operator.mul, "div": operator.floordiv}.items():
    _register(_name, partial(_calculate, _name, _function), replace=True)


def compose(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merges YAML files and `--key value` overrides, resolves interpolations once, and checks every key.

    Maps merge deeply; lists and scalars are replaced; `key: null` removes the entry. A block whose `class_path` changes
    keeps only the arguments that the new class takes. The first file may name a file as its `base`. The arguments of a
    class may also be next to `class_path`. `${add:a,b}`, `${mul:a,b}` and `${div:a,b}` calculate with integers.
    An argument that takes text gets the exact text, with a leading `~` expanded to the home folder.

    Args:
        files: paths; each file is merged over the ones before it.
        overrides: ["--a.b", "1", "--c=2", ...]; a dotted key may leave out `init_args`.

    Raises:
        BadInput: a file is missing or not a YAML map, an override has no value, a key is unknown (the message has the
            nearest one), or an interpolation cannot be resolved.
    """
    layers = _merge(files, overrides)
    merged, top = layers.config, dict(_EARLY)
    if "trainer" in merged:
        from lightning import Trainer  # slow to import: only if a configuration has a trainer

        top["trainer"] = argument_hints(Trainer)
    config = _interpolate(read_written(merged, top, lambda class_path, _: argument_hints(import_class(class_path))))
    try:
        check(config)
    except UnknownKey as error:
        source = layers.source_of(error.key)
        if source is None or source.startswith("--"):
            raise
        raise BadInput(f"Unknown configuration key {error.key}, set by {source}{error.hint}") from None
    return config


def resolve(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`compose` without checking the keys and without Lightning, which takes seconds to import.

    The arguments of `model`, `data` and `trainer` are read as YAML, except for those in `_EARLY`.
    """

    def hints_of(class_path: str, path: str) -> Hints:
        slow = path in ("model", "data") or path.startswith("trainer.")
        return {} if slow else argument_hints(import_class(class_path))

    return _interpolate(read_written(_merge(files, overrides).config, _EARLY, hints_of))


def _merge(files: Iterable[str | Path], overrides: Sequence[str]) -> Merged:
    """Merges files and overrides, every value as it was written."""
    merged = Merged()
    files = list(files)
    first = next((file for file in files if file != DEFAULTS), None)
    for file in files:
        is_base = file in (DEFAULTS, first)
        *bases, own = _chain(file)
        if bases and not is_base:
            raise BadInput(f"{file} has a base, so it is a whole configuration: only the first -c may be one.")
        for content, texts in (*bases, own):
            merged.lay(present(cast(dict[str, Any], _both(content, texts)), renamed_only=True), file, is_base)
    for key, value in parse_overrides(overrides):
        path = _full_path(merged.config, key)
        block: Any = value
        for name in reversed(path):
            block = {name: block}
        _check_path(merged.config, path, key)
        _check_define(merged.config, path, key)
        merged.lay(_present(block), f"--{key}")
    return merged


def _present(value: Any) -> Any:
    """`present` for an override, whose value may be a `Written` map."""
    if isinstance(value, Written):
        return replace(value, value=present(value.value, renamed_only=True))
    if not isinstance(value, Mapping):
        return value
    return present({key: _present(item) for key, item in value.items()}, renamed_only=True)


def _interpolate(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        message = str(error).splitlines()[0].removeprefix("BadInput raised while resolving interpolation: ")
        raise BadInput(f"Configuration key {key}: {message}.") from error
    return cast(dict[str, Any], present(container))


def compose_run(files: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`compose` over the defaults that every training run shares (defaults.yaml next to this file).

    Raises:
        BadInput: as `compose`; or `model` or `data` is missing.
    """
    config = compose([DEFAULTS, *files], overrides)
    for part in ("model", "data"):
        if part not in config:
            raise BadInput(
                f"The configuration has no {part!r}: give -c FILE, e.g. experiments/demo/tokenizer-stage1.yaml."
            )
    return config


def load_yaml(file: str | Path) -> dict[str, Any]:
    """Reads one YAML file as a plain map, merged over its `base` if it has one. Leaves interpolations as they are.

    A missing file experiments/... is read from the package, so that no repository is needed.

    Raises:
        BadInput: the file is missing or not a YAML map.
    """
    merged = Merged()
    for content, _ in _chain(file):
        merged.lay(content, file, is_base=True)
    return merged.config


def _chain(file: str | Path) -> list[tuple[dict[str, Any], Any]]:
    """The contents of a file's bases and then of the file itself, each with its texts (see `_load`).

    Raises:
        BadInput: a base is not a file name, is missing, or has this file as a base.
    """
    chain: list[tuple[dict[str, Any], Any]] = []
    place: str | Path | None = file
    seen: list[Path] = []
    while place is not None:
        try:
            path = _found(Path(place).expanduser())
            absolute = path.resolve()
        except (OSError, ValueError) as error:
            raise BadInput(f"Configuration {file}: {str(place)[:80]!r} is no file name: {error}.") from error
        if absolute in seen:
            raise BadInput(f"{file} builds on itself: its base {place} comes twice; name another one.")
        seen.append(absolute)
        content, texts = _load(path, place)
        base = content.pop("base", None)
        chain.insert(0, (content, texts))
        if base is not None and not isinstance(base, str):
            raise BadInput(f"Configuration {place}: base must be the name of one file, not {base!r}.")
        place = None if base is None else _base(base, path)
    return chain


def _found(file: str | Path) -> Path:
    """The path of a configuration. A missing file under experiments/ is taken from the package."""
    path = Path(file)
    if path.exists() or path.parts[:1] != ("experiments",):
        return path
    new = moved_files().get(str(path), str(path))
    shipped = experiments_folder().joinpath(*Path(new).parts[1:])
    return shipped if shipped.is_file() else path


def _base(name: str, file: Path) -> str | Path:
    """The path of a base: next to the file that names it, else in the package."""
    near = file.parent / name
    if near.exists():
        return near
    if name.startswith("experiments/"):
        return name  # `_found` looks for it
    shipped = experiments_folder().joinpath(*(part for part in Path(name).parts if part not in ("..", ".")))
    return shipped if shipped.is_file() else near


class _Texts(yaml.SafeLoader):
    """Reads every scalar as text."""


_Texts.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # `<<` merges maps


def _load(path: Path, file: str | Path) -> tuple[dict[str, Any], Any]:
    """What YAML reads at a path, and the same with every scalar as text. `file` is its name for the messages."""
    try:
        content, texts = copy.deepcopy(_parsed(path, path.read_text("utf-8")))
    except OSError as error:
        raise BadInput(f"Cannot read configuration {file}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise BadInput(f"Configuration {file} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not isinstance(texts, dict | None):  # OmegaConf makes a key of a lone text
        raise BadInput(f"Configuration {file} holds no map of keys.")
    return cast(dict[str, Any], content), texts


@lru_cache(maxsize=1024)
def _parsed(path: Path, text: str) -> tuple[Any, Any]:
    """The same, for a text that was just read there. Cached: trials and leagues read the same few files many times."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False), yaml.load(text, Loader=_Texts)


def _both(value: Any, text: Any) -> Any:
    """What YAML reads, with every value that is not text or null as `Written`."""
    if isinstance(value, Mapping) and isinstance(text, Mapping):
        return {key: _both(item, text.get(str(key))) for key, item in value.items()}
    if isinstance(value, list) and isinstance(text, list):
        return [_both(*pair) for pair in zip(value, text, strict=True)]
    plain = value is None or isinstance(value, str) or not isinstance(text, str)
    return value if plain else Written(text, value)


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Written | None]]:
    """["--a.b", "1", "--c=null"] -> [("a.b", Written("1", 1)), ("c", None)].

    Raises:
        BadInput: an argument is not a `--key`, or a key has no value.
    """
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise BadInput(f"Unexpected argument {word!r}: overrides are written --key value.")
        key, equals, text = word[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        if not text:
            raise BadInput(f"Override --{key} has no value; null removes the key.")
        pairs.append((key, None if text in _NULL else _written(text, key)))
    return pairs


def _written(text: str, key: str) -> Written:
    """A value from the command line; the items of a list or map keep their texts."""
    document = "value:\n  " + text.replace("\n", "\n  ")
    try:
        # With OmegaConf's reader 1e-4 is a number, as it is in a file.
        value = OmegaConf.to_container(OmegaConf.create(document), resolve=False)["value"]  # type: ignore
        texts = yaml.load(document, Loader=_Texts)["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        value = None
    broken = value is None  # `parse_overrides` handles null; YAML reads an empty text, a comment and ~ as None too
    if isinstance(value, dict | list):
        value = _both(value, texts)
    return Written(text, text if broken else value, key, broken)


def has_place(files: Iterable[str | Path], key: str) -> bool:
    """Whether an override `--key` would change something: an argument, an entry of a map, a value in use."""
    node: Any = _merge([DEFAULTS, *files], ()).config
    path = _full_path(node, key)
    if path[0] == "define" and len(path) > 1:
        return path[1] in node.get("define", {}) or _uses(node, path[1])
    known: set[str] | None = None
    for name in path:
        if not isinstance(node, Mapping) or (known is not None and name not in known):
            return False
        is_block = name == "init_args" and is_class_block(node)
        known = known_arguments(import_class(str(node["class_path"]))) if is_block else None
        node = opened(node.get(name, {} if is_block else None))
    return True


def _full_path(merged: Mapping[str, Any], key: str) -> list[str]:
    """The path of a dotted key, with the `init_args` that the key may leave out."""
    path: list[str] = []
    node: Any = merged
    for name in key.split("."):
        if is_class_block(node) and name not in ("class_path", "init_args"):
            path.append("init_args")
            node = node.get("init_args") or {}
        path.append(name)
        node = opened(node.get(name)) if isinstance(node, Mapping) else None
    return path


def _check_path(merged: Mapping[str, Any], path: list[str], key: str) -> None:
    """Refuses an override of an entry below a value that is not a map."""
    node: Any = merged
    for name in path[:-1]:
        node = opened(node.get(name)) if isinstance(node, Mapping) else None
        if node is not None and not isinstance(node, Mapping):
            raise BadInput(f"Override --{key}: {name} is a value, not a map, in this configuration.")


def _check_define(merged: Mapping[str, Any], path: list[str], key: str) -> None:
    """Refuses an override of a value that no file defines or refers to; it would change nothing."""
    if path[0] != "define" or len(path) == 1:
        return
    known = merged.get("define") or {}
    if path[1] not in known and not _uses(merged, path[1]):
        raise BadInput(f"Override --{key}: no file defines or uses {path[1]!r}{nearest(path[1], known)}")


def _uses(merged: Mapping[str, Any], name: str) -> bool:
    """Whether a value refers to this name of the `define` block."""
    return re.search(rf"define\.{re.escape(name)}(?!\w)", str(merged)) is not None


def check(config: Mapping[str, Any]) -> None:
    """Raises BadInput for the first unknown key (the message has the nearest known one) or missing argument."""
    for key in config:
        if key not in TOP_LEVEL:
            raise BadInput(f"Unknown configuration key {key!r}{nearest(key, TOP_LEVEL)}")
    for part in ("model", "data"):
        if part in config and not is_class_block(config[part]):
            raise BadInput(
                f"{part} needs a class_path: a file of changes is laid over a base, -c experiments/demo/"
                "tokenizer-stage1.yaml -c FILE (its first line may name others)."
            )
    kinds = {}
    if "model" in config or "data" in config:
        from lightning import LightningDataModule, LightningModule

        kinds = {"model": LightningModule, "data": LightningDataModule}
    if trainer := config.get("trainer"):
        from lightning import Trainer  # slow to import: only if a configuration has a trainer

        check_arguments("trainer", trainer, known_arguments(Trainer.__init__) or set())
    check_blocks(config, "", kinds)

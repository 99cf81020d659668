"""Merges configurations, and prints a sentence if one overlay removes what an earlier one set."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alitok.common.build import import_class, known_arguments
from alitok.common.errors import BadInput
from alitok.common.written import Written

_said: set[str] = set()


class Merged:
    """A configuration that grows layer by layer.

    Attributes:
        config: the merged layers; maps are merged deeply, everything else is replaced.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._origins: dict[str, str] = {}  # key -> the overlay or override that set it

    def lay(self, layer: Mapping[str, Any], source: str | Path, is_base: bool = False) -> None:
        """Merges one more map into `config`.

        `None` removes an entry. A block whose `class_path` changes keeps only the arguments that the new class takes.

        Args:
            source: a file, or an override `--key`, for the sentences.
            is_base: later layers may change what this layer sets without a sentence.
        """
        self._merge(self.config, layer, "", None if is_base else str(source))

    def source_of(self, key: str) -> str | None:
        """The overlay or override that set a key of `config`, or an entry below it; None if the base set it."""
        return next((source for name, source in self._origins.items() if f"{name}.".startswith(f"{key}.")), None)

    def _merge(self, base: dict[str, Any], layer: Mapping[str, Any], path: str, source: str | None) -> None:
        for key, value in layer.items():
            here = f"{path}.{key}" if path else str(key)
            under = opened(base.get(key))
            written = opened(value)
            if isinstance(under, Mapping) or (isinstance(written, Mapping) and "class_path" in written):
                value = written
            if value is None:
                base.pop(key, None)
            elif isinstance(value, Mapping):
                under = dict(under) if isinstance(under, Mapping) else {}
                value = _spelled_out(value, under, here)
                old, new = under.get("class_path"), value.get("class_path")
                if old and new and str(old) != str(new):
                    self._change_class(under, str(new), here, source)
                self._merge(under, value, here, source)
                base[key] = under
            else:
                base[key] = value
                if source is not None:
                    self._origins[here] = source

    def _change_class(self, block: dict[str, Any], new: str, path: str, source: str | None) -> None:
        known = known_arguments(import_class(new))
        arguments = block.get("init_args") or {}
        block["init_args"] = {key: value for key, value in arguments.items() if known is None or key in known}
        earlier = self._origins.get(f"{path}.class_path")
        if earlier is None and (str(block["class_path"]).startswith("alitok.ideas.") or ".losses." in path):
            earlier = "the base"  # a base without an idea there is what overlays are for; a loss term has its own name
        if source is not None and earlier is not None and not source.startswith("--"):
            say_once(f"{source} replaces {block['class_path']}, which {earlier} set as {path}, by {new}.")
        if source is None and not block["init_args"]:
            del block["init_args"]  # as if the variant were written out
        for key in arguments.keys() - block.get("init_args", {}).keys():
            place = f"{path}.init_args.{key}"
            for name in [name for name in self._origins if f"{name}.".startswith(f"{place}.")]:
                say_once(f"{new} has no argument {key!r}, so that {name} of {self._origins.pop(name)} is dropped.")


def _spelled_out(value: Mapping[str, Any], under: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """A class block with the arguments that stand next to `class_path` moved into `init_args`."""
    if "class_path" not in value and "class_path" not in under:
        return value
    loose = {key: item for key, item in value.items() if key not in ("class_path", "init_args")}
    arguments = opened(value.get("init_args")) or {}
    if not isinstance(arguments, Mapping):
        return value  # `check` reports the error
    if twice := loose.keys() & arguments.keys():
        raise BadInput(f"{path}.{min(twice)} stands both next to init_args and in it; remove one.")
    kept = {key: item for key, item in value.items() if key not in loose}
    return {**kept, "init_args": {**arguments, **loose}} if loose else value


def opened(value: Any) -> Any:
    """The map in a `Written` value, so that it can be merged; any other value unchanged."""
    return value.value if isinstance(value, Written) and isinstance(value.value, Mapping) else value


def say_once(sentence: str) -> None:
    """Prints a sentence on stderr, once per launch."""
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if first and sentence not in _said:
        print(f"alitok: {sentence}", file=sys.stderr)
    _said.add(sentence)

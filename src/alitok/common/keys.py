"""Checks the keys of a composed configuration against the classes that it names."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from alitok.common.build import argument_hints, import_class, is_class_block, known_arguments, misfit, nearest, not_a
from alitok.common.errors import BadInput


class UnknownKey(BadInput):
    """A configuration has a key that no class takes.

    Attributes:
        key: dotted, with `init_args`.
        hint: "; did you mean ...?", or empty.
    """

    def __init__(self, key: str, known: Iterable[str]) -> None:
        self.key, self.hint = key, nearest(key.rpartition(".")[2], known)
        super().__init__(f"Unknown configuration key {key}{self.hint}")


def check_arguments(where: str, arguments: Mapping[str, Any], known: set[str]) -> None:
    """Raises UnknownKey for the first argument that is not known."""
    for key in arguments:
        if key not in known:
            raise UnknownKey(f"{where}.{key}", known)


def check_blocks(value: Any, where: str, hint: Any = None) -> None:
    """Raises BadInput for the first class block, at `where` or below, that its class does not take."""
    hints = hint if isinstance(hint, dict) else {}
    if is_class_block(value):
        for key in value:
            if key not in ("class_path", "init_args"):
                raise BadInput(f"Unknown configuration key {where}.{key}; arguments go under {where}.init_args.")
        target = import_class(value["class_path"])
        if wanted := not_a(target, hint):
            raise BadInput(f"Configuration key {where}: {value['class_path']} is no {wanted}; name another class.")
        arguments, hints = value.get("init_args") or {}, {"init_args": argument_hints(target)}
        if not isinstance(arguments, Mapping):
            raise BadInput(f"Configuration key {where}.init_args must be a map of arguments, not {arguments!r}.")
        known = known_arguments(target)
        if known is not None:
            check_arguments(f"{where}.init_args", arguments, known)
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
            check_blocks(item, f"{where}.{key}" if where else str(key), hints.get(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_blocks(item, f"{where}[{index}]")

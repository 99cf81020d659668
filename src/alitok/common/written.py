"""Reads each value of a configuration by the type of its argument.

YAML reads `010` as 8, `no` as false and `pets #2` as `pets`. A number, a list or a choice gets that reading. An
argument that takes text gets the exact text, with a leading `~` expanded to the home folder.
"""

import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from alitok.common.build import LISTS, MAPS, fits, fixed_length, is_class_block
from alitok.common.errors import BadInput

Hints = Mapping[str, Any]
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_ARITHMETIC = re.compile(r"\$\{(add|mul|div):")


@dataclass(frozen=True, eq=False)
class Written:
    """A value as it was written, and as YAML reads it.

    Attributes:
        value: YAML's reading; the text itself if YAML cannot read it.
        key: key of the override, for messages; empty for a value of a file.
        broken: the text is not valid YAML.
    """

    text: str
    value: Any
    key: str = ""
    broken: bool = False

    def __str__(self) -> str:
        return self.text


def read_written(config: Mapping[str, Any], top: Hints, hints_of: Callable[[str, str], Hints]) -> dict[str, Any]:
    """The configuration with every `Written` value replaced by its reading.

    A value that `${...}` refers to has the types of the places that refer to it. Of several types, one that is not text
    comes first; a reference inside other text makes it text. A value that nothing refers to is read as YAML if it comes
    from a file, and as text if it comes from the command line.

    Args:
        top: types by top-level key; a map of types for a map of arguments.
        hints_of: (class path, its place in the configuration) -> types by argument.

    Raises:
        BadInput: a value is not valid YAML, and its argument does not take text.
    """
    uses: dict[str, list[tuple[str, Any]]] = {}
    own: dict[str, Any] = {}

    def walk(node: Any, hint: Any, path: str, leaf: Callable[[Any, Any, str], Any]) -> Any:
        if isinstance(node, Written):
            node = leaf(node, hint, path)
        if hint is None and path in uses:  # `uses` is empty while they are collected
            hint = next(hints(path), Any)
        if is_class_block(node):
            hint = {"class_path": str, "init_args": hints_of(str(node["class_path"]), path)}
        below = f"{path}." if path else ""
        if isinstance(node, Mapping):
            return {key: walk(item, _item(hint, MAPS, key), f"{below}{key}", leaf) for key, item in node.items()}
        if isinstance(node, list):
            return [walk(item, _item(hint, LISTS, index), f"{below}{index}", leaf) for index, item in enumerate(node)]
        return leaf(node, hint, path) if isinstance(node, str) else node

    def collect(node: Any, hint: Any, path: str) -> Any:
        own[path] = hint
        text = str(node)
        for name in _REFERENCE.findall(text):
            inside: Any = hint if text == f"${{{name}}}" else int if _ARITHMETIC.search(text) else str
            uses.setdefault(name, []).append((path, inside))
        return node.value if isinstance(node, Written) else node

    def hints(path: str, seen: frozenset[str] = frozenset()) -> Iterator[Any]:
        if own.get(path) is not None:
            yield own[path]
        elif path not in seen:
            for place, hint in uses.get(path, ()):
                yield from (hint,) if hint is not None else hints(place, seen | {path})

    def read(node: Any, hint: Any, path: str) -> Any:
        known = [item for item in (hints(path) if hint is None else (hint,)) if item not in (None, Any)]
        if isinstance(node, Written):
            unused = node.key and path.startswith("define.") and path not in uses and hint is None
            scalar = not isinstance(node.value, Mapping | list)
            free = next(hints(path), None) if hint is None else hint
            readings = [meant(node, item) for item in known] or [node.text if unused and scalar else meant(node, free)]
            node = next((item for item in readings if not isinstance(item, str)), readings[0])
        text = isinstance(node, str) and any(takes_text(item) for item in known)
        return os.path.expanduser(node) if text else node

    walk(config, top, "", collect)
    return dict(walk(config, top, "", read))


def meant(written: Written, hint: Any) -> Any:
    """The value for an argument of the type `hint`; None or Any for an unknown type."""
    text, value, members = written.text, written.value, _members(hint)
    for member in members:
        if get_origin(member) is Literal:
            for item in (value, text):
                if any(item == choice and type(item) is type(choice) for choice in get_args(member)):
                    return item
        elif _is_of(value, member) and not (takes_text(hint) and _is_more_than(text, value)):
            return value
    if takes_text(hint) or any(get_origin(member) is Literal for member in members):
        return text
    if written.broken and hint is not None:
        raise BadInput(f"Override --{written.key}: {text!r} is no valid YAML value.")
    quoted = text[:1] in ("'", '"')
    return text if isinstance(value, str) and not quoted and hint in (None, Any) else value


def takes_text(hint: Any) -> bool:
    """Whether an argument of this type may be a text of any kind."""
    return any(member in (str, Path) for member in _members(hint))


def _is_of(value: Any, member: Any) -> bool:
    """Whether YAML's reading has the type `member`, which is not text. Does not look at the items of lists and maps."""
    kind = get_origin(member) or member
    if kind in MAPS or kind in LISTS:
        return isinstance(value, Mapping if kind in MAPS else list)
    if member in (int, float, bool):
        return fits(value, member)
    return member not in (str, Path, Any) and is_class_block(value)


def _is_more_than(text: str, value: Any) -> bool:
    """Whether a text is not the plain spelling of the integer or boolean that YAML reads: 010, 12:30, no."""
    return isinstance(value, int) and str(value).lower() != text.lower()


def _members(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _item(hint: Any, kinds: Sequence[Any], key: Any) -> Any:
    """The type of an item of a list or map."""
    if isinstance(hint, Mapping):
        return hint.get(key)
    if hint is Any:
        return Any
    for member in _members(hint):
        inner = get_args(member)
        if inner and get_origin(member) in kinds:
            fixed = fixed_length(member)
            if fixed:
                return fixed[key] if key < len(fixed) else None
            return inner[1] if kinds is MAPS else inner[0]
    return None

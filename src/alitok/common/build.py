"""Objects from {class_path, init_args}: how every part of a configuration names its class."""

import difflib
import importlib
import inspect
import os
import sys
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from alitok.common.errors import BadInput, first_line


@cache
def moved() -> dict[str, dict[str, Any]]:
    """Class path of version 0.1 -> its present class block (`moved.yaml`)."""
    content = _moved_table().items()
    return {old: new if isinstance(new, dict) else {"class_path": new} for old, new in content if "/" not in old}


@cache
def moved_files() -> dict[str, str]:
    """File of version 0.1 under experiments/ -> its present place (`moved.yaml`)."""
    return {old: new for old, new in _moved_table().items() if "/" in old}


def _moved_table() -> dict[str, Any]:
    return dict(yaml.safe_load((Path(__file__).parent / "moved.yaml").read_text("utf-8")))


def present(value: Any, renamed_only: bool = False) -> Any:
    """Replaces the class paths of version 0.1 in a configuration by today's.

    Args:
        renamed_only: leave classes that are now an argument of a different class. Merging needs this: if the next layer
            changes the class, that argument must not stay.
    """
    if isinstance(value, list):
        return [present(item, renamed_only) for item in value]
    if not isinstance(value, Mapping):
        return value
    result = {key: present(item, renamed_only) for key, item in value.items()}
    new = moved().get(str(result.get("class_path")))
    if new is not None and not (renamed_only and "init_args" in new):
        result["class_path"] = new["class_path"]
        if arguments := new.get("init_args"):
            result["init_args"] = {**(result.get("init_args") or {}), **arguments}
    return result


def is_class_block(value: Any) -> bool:
    """Whether a configuration value names a class."""
    return isinstance(value, Mapping) and "class_path" in value


def _where_it_is(error: Exception) -> str:
    """A sentence on where a missing module is: one of version 0.1, or a file of the user's; "" for other errors."""
    if isinstance(error, ModuleNotFoundError):
        for old, block in moved().items():
            if old.rpartition(".")[0] == error.name:
                return f" {error.name} has moved: its {old.rpartition('.')[2]} is {block['class_path']} now."
        if "." not in str(error.name):
            return f" If {error.name} is your own file, start the command in its folder."
    return ""


def import_class(class_path: str) -> Any:
    """The class (or factory function) at a dotted path. Also finds modules in the working folder.

    Raises:
        BadInput: there is no such module or name (the message has the nearest name), or it is neither a class nor a
            Python function.
    """
    class_path = moved().get(str(class_path), {}).get("class_path", str(class_path))
    module_name, _, name = class_path.rpartition(".")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides nothing that is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        reason = str(error) if isinstance(error, ImportError | ValueError) else repr(error)
        raise BadInput(
            f"class_path {class_path!r} cannot be imported: {' '.join(reason.split())}.{_where_it_is(error)}"
        ) from error
    if not hasattr(module, name):
        raise BadInput(f"class_path {class_path!r}: {module_name} has no {name!r}{nearest(name, dir(module))}")
    target = getattr(module, name)
    if not isinstance(target, type | types.FunctionType):
        raise BadInput(f"class_path {class_path!r} is no class; give the dotted name of a class.")
    return target


def nearest(word: str, choices: Any) -> str:
    """'; did you mean ...?' with the closest of the choices; "" if none is close."""
    close = difflib.get_close_matches(word, [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_arguments(target: Any) -> set[str] | None:
    """Arguments of a class's constructor, and of its parents' if it passes **kwargs on; None = any."""
    names: set[str] = set()
    classes = inspect.getmro(target) if inspect.isclass(target) else (target,)
    for item in classes:
        function = item.__dict__.get("__init__") if inspect.isclass(item) else item
        if function is None or function is object.__init__:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {"self"}
    return None if not inspect.isclass(target) else names - {"self"}


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "nothing"}
MAPS, LISTS = (dict, Mapping), (list, tuple, Sequence)


@cache
def argument_hints(target: Any) -> dict[str, Any]:
    """The types of the arguments of a class's constructor and its parents' constructors."""
    hints: dict[str, Any] = {}
    for item in reversed(inspect.getmro(target)) if inspect.isclass(target) else (target,):
        function = item.__dict__.get("__init__") if inspect.isclass(item) else item
        if isinstance(function, types.FunctionType):
            try:
                hints |= get_type_hints(function)
            except (NameError, TypeError):  # hints that only a type checker can follow
                continue
    return hints


def misfit(target: Any, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first argument whose value does not fit its type hint, and what it must be; None = all fit.

    Checks numbers, text, booleans, choices, lists and maps. The class itself checks other types.
    """
    hints = argument_hints(target)
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            return name, _in_words(hints[name])
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a type hint; True for a type that is not checked."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, item) for item in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint in _WORDS:
        return isinstance(value, hint)
    kind = hint if origin is None else origin
    if isinstance(value, Mapping) and is_part(kind):
        return is_class_block(value)
    if kind in MAPS:
        return isinstance(value, Mapping) and all(fits(item, inner[1]) for item in value.values() if inner)
    if kind in LISTS:
        if not isinstance(value, list | tuple):
            return False
        items = fixed_length(hint) or [inner[0] if inner else Any] * len(value)
        return len(value) == len(items) and all(map(fits, value, items))
    return True


def is_part(hint: Any) -> bool:
    """Whether a hint is a class whose objects are built from a class block."""
    plain = (*_WORDS, *MAPS, *LISTS, object, Path, Any)
    return inspect.isclass(hint) and get_origin(hint) is None and hint not in plain


def not_a(target: Any, hint: Any) -> str:
    """The name of the class in a hint, if `target` is a class but not a subclass of it; else ""."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = [item for item in members if is_part(item) and not getattr(item, "_is_protocol", False)]
    wrong = wanted and inspect.isclass(target) and not issubclass(target, tuple(wanted))
    return " or ".join(item.__name__ for item in wanted) if wrong else ""


def fixed_length(hint: Any) -> Sequence[Any]:
    """The hint of each item if their number is fixed, as in tuple[float, float]; else empty."""
    inner = get_args(hint)
    return inner if get_origin(hint) is tuple and inner[-1] is not ... else ()


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(item) for item in inner if item is not type(None))
    if origin is Literal:
        return " or ".join(map(str, inner))
    kind = hint if origin is None else origin
    if kind in MAPS:
        return "a map"
    if kind in LISTS:
        return f"a list of {len(fixed_length(hint))}" if fixed_length(hint) else "a list"
    return _WORDS.get(hint, f"a map with the class_path of a {getattr(hint, '__name__', hint)}")


def build(block: Mapping[str, Any], **extra: Any) -> Any:
    """Imports `class_path` and calls it with `init_args` (nested class blocks are built first) and `extra`.

    Raises:
        BadInput: the class does not exist, lacks an argument, or refuses a value.
    """
    block = present(block)
    if not is_class_block(block):
        raise BadInput(f"A part of the configuration has no class_path: {block!r}; name its class, or remove it.")
    target = import_class(block["class_path"])
    arguments = {key: build_value(value) for key, value in (block.get("init_args") or {}).items()}
    arguments.update(extra)
    known = known_arguments(target)
    for key in arguments:
        if known is not None and key not in known:
            raise BadInput(f"{block['class_path']} has no argument {key!r}{nearest(key, known)}")
    if wrong := misfit(target, block.get("init_args") or {}):
        name, wanted = wrong
        raise BadInput(f"{block['class_path']}: {name} must be {wanted}, not {arguments[name]!r}.")
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise BadInput(f"{block['class_path']}: {error}.") from error
    try:
        return target(**arguments)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        raise BadInput(f"{block['class_path']}: {first_line(error)}.") from error


def build_a(kind: type, block: Mapping[str, Any]) -> Any:
    """`build`, for a class that must subclass `kind`.

    Raises:
        BadInput: as `build`; or, before the class is called, it does not subclass `kind`.
    """
    if is_class_block(block) and (wanted := not_a(import_class(block["class_path"]), kind)):
        raise BadInput(f"{block['class_path']} is no {wanted}; name another class.")
    return build(block)


def build_value(value: Any) -> Any:
    """Builds every class block inside maps and lists; leaves the rest as it is."""
    if is_class_block(value):
        return build(value)
    if isinstance(value, Mapping):
        return {key: build_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [build_value(item) for item in value]
    return value

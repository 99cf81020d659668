"""Objects from {class_path, init_args}: how every part of a configuration names its class."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from alitok.common.errors import BadInput


def is_class_block(value: Any) -> bool:
    """Whether a configuration value names a class."""
    return isinstance(value, Mapping) and "class_path" in value


def import_class(class_path: str) -> Any:
    """The class (or factory function) behind a dotted path.

    Raises:
        BadInput: no such module or name, with the nearest one.
    """
    module_name, _, name = str(class_path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise BadInput(f"class_path {class_path!r} cannot be imported: {error}.") from error
    if not hasattr(module, name):
        raise BadInput(f"class_path {class_path!r}: {module_name} has no {name!r}{nearest(name, dir(module))}.")
    return getattr(module, name)


def nearest(word: str, choices: Any) -> str:
    """'; did you mean ...?' with the closest of the choices, or nothing."""
    close = difflib.get_close_matches(word, [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_arguments(target: Any) -> set[str] | None:
    """Names that a class's constructor takes (those of its parents too where it passes **kwargs on); None = any."""
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


def build(block: Mapping[str, Any], **extra: Any) -> Any:
    """Imports `class_path` and calls it with `init_args` (nested class blocks are built first) and `extra`.

    Raises:
        BadInput: the class does not exist or does not know an argument.
    """
    target = import_class(block["class_path"])
    arguments = {key: build_value(value) for key, value in (block.get("init_args") or {}).items()}
    arguments.update(extra)
    known = known_arguments(target)
    for key in arguments:
        if known is not None and key not in known:
            raise BadInput(f"{block['class_path']} has no argument {key!r}{nearest(key, known)}")
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise BadInput(f"{block['class_path']}: {error}.") from error
    return target(**arguments)


def build_value(value: Any) -> Any:
    """Builds every class block inside maps and lists; leaves the rest as it is."""
    if is_class_block(value):
        return build(value)
    if isinstance(value, Mapping):
        return {key: build_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [build_value(item) for item in value]
    return value

"""Finds and removes this machine's paths in values that are published."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# the folders before a last name: /a/b/, ~/a/, ../a/, C:\a\, file:///a/; but not https://a/b, owner/name or 1 / 2
_FOLDERS = re.compile(
    r"""(?<![\w/.~\\])(?:file://|~[\w-]*|\.{1,2}|[A-Za-z]:)?[\\/](?![\\/])"""
    r"""(?:[^\\/;:"'\n]*[^\\/;:"'\s][\\/])*(?=[^\s\\/;:"',)])"""
)


def has_path(text: str) -> bool:
    """Whether a text contains a path on this machine."""
    return _FOLDERS.search(text) is not None


def without_folders(value: Any) -> Any:
    """The value with each path in its texts reduced to its last name."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    return [without_folders(item) for item in value] if isinstance(value, list | tuple) else value


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a value at any depth, with their dotted keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list | tuple):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from texts(item, f"{key}.{name}".lstrip("."))

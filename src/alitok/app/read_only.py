"""Imports gradio without letting it write into its own package.

On import gradio makes type stubs, compares them with those next to its sources, and writes those that differ: half of
the import's time. It also stores a random seed for the names of its temporary files. The app must write nothing
outside its temporary folder.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any
from uuid import uuid4

# module: its function that writes, and what replaces it; a function that is missing is not replaced
WRITERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "gradio.component_meta": ("create_or_modify_pyi", lambda *_: None),
    "gradio.utils": ("get_hash_seed", lambda: uuid4().hex),
}


class ReadOnly:
    """Finds the modules of gradio that write, and replaces their functions."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WRITERS:
            return None
        function, replacement = WRITERS[name]
        spec = PathFinder.find_spec(name, path)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, function):
                    setattr(module, function, replacement)

            loader.exec_module = exec_module
        return spec


def import_read_only() -> None:
    """Import gradio. Call this before any other import of gradio."""
    finder: Any = ReadOnly()
    sys.meta_path.insert(0, finder)
    try:
        import gradio  # noqa: F401
    finally:
        sys.meta_path.remove(finder)

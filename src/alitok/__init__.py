"""AliTok: aligned image tokenizers and autoregressive image generation.

The public names are imported when they are first used, so that `import alitok` itself is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alitok.artifacts.folder import load_generator, load_tokenizer
    from alitok.sampling.generate import generate

    __version__: str

__all__ = ["__version__", "generate", "load_generator", "load_tokenizer"]

_HOMES = {
    "load_tokenizer": "alitok.artifacts.folder",
    "load_generator": "alitok.artifacts.folder",
    "generate": "alitok.sampling.generate",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("alitok")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

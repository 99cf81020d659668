"""The C++ compiler that `torch.compile` needs."""

import logging
import os
import shutil

from alitok.common.errors import BadInput


def has_compiler() -> bool:
    """Whether there is a C++ compiler. `torch.compile` needs one for its CPU code and to launch its GPU code."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def need_compiler(what: str) -> None:
    """Requires a compiler, and keeps torch from warning that there is no GPU.

    Raises:
        BadInput: there is no compiler.
    """
    if not has_compiler():
        raise BadInput(f"{what} needs a C++ compiler, g++ or what CXX names: install one, or do not compile.")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

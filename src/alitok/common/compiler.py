"""What `torch.compile` needs of a machine."""

import logging
import os
import shutil

from alitok.common.errors import BadInput


def has_compiler() -> bool:
    """Whether there is the C++ compiler that `torch.compile` needs: for its CPU code, and to launch its GPU code."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def need_compiler(what: str) -> None:
    """Before compiling: refuses where there is no compiler, and keeps torch from warning that there is no GPU.

    Raises:
        BadInput: `what` needs a compiler that is not there.
    """
    if not has_compiler():
        raise BadInput(f"{what} needs a C++ compiler, g++ or what CXX names: install one, or do not compile.")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

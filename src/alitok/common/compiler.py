"""What `torch.compile` needs of a machine."""

import logging
import os
import shutil


def has_compiler() -> bool:
    """Whether there is the C++ compiler that `torch.compile` needs: for its CPU code, and to launch its GPU code."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def quiet_compiler() -> None:
    """Keeps the compiler from warning that there is no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

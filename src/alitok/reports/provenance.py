"""The origin of numbers: the running command and the machine."""

import platform
import shlex
import sys
from pathlib import Path


def command() -> str:
    """The running command, as one would type it."""
    return shlex.join(["alitok", *sys.argv[1:]])


def machine() -> str:
    """Processor, threads and GPU, versions, in one line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor()}, {torch.get_num_threads()} threads, {gpu}; {versions()}"


def processor() -> str:
    """The processor's name, or its architecture if the system gives no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> str:
    """Versions of this package, torch and Python."""
    import torch

    import alitok

    return f"alitok {alitok.__version__}, torch {torch.__version__}, Python {platform.python_version()}"

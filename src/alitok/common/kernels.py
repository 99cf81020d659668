"""Chooses among several kernels for one operation; ALITOK_KERNELS=attention=fused,decode=plain overrides the choice.

The choice depends on the kind of processor, not on a measurement. Kernels round differently, and measurements vary with
load, so that one seed could draw two images. `alitok bench sampling` measures all kernels.
"""

import os
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from alitok.common.build import nearest
from alitok.common.errors import BadInput

VARIABLE = "ALITOK_KERNELS"
# All kernels of an operation agree except for rounding.
KERNELS = {
    "attention": ("plain", "fused"),  # of a training step on a CPU
    "decode": ("plain", "turned", "fused", "triton"),  # cache write and attention of a decoding step
    "linear": ("blocked", "turned"),  # float32 linear layers of a decoding step on a CPU
}
# MKL is faster while the weight fits in a core's own cache; a larger one is read faster in oneDNN's layout. How MKL
# splits longer sums depends on the number of rows, and an image must not depend on its batch.
TURNED_BYTES, TURNED_INPUTS = 1 << 20, 1024


def chosen(operation: str) -> str | None:
    """The kernel that the user names for an operation; None if the user names none.

    Raises:
        BadInput: the variable names an operation or a kernel that does not exist.
    """
    asked = dict.fromkeys(KERNELS, "")
    for part in filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")):
        name, _, kernel = part.partition("=")
        if name not in KERNELS:
            raise BadInput(f"{VARIABLE} names {name!r}{nearest(name, KERNELS)}; it takes {', '.join(KERNELS)}.")
        if kernel not in KERNELS[name]:
            raise BadInput(f"{VARIABLE} wants {kernel!r} for {name}; there are {', '.join(KERNELS[name])}.")
        asked[name] = kernel
    return asked[operation] or None


@cache
def intel() -> bool:
    """Whether products run through MKL on an Intel processor; on others MKL takes slower paths."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def decode_kernel(device: torch.device) -> str:
    """The kernel of a decoding step: Triton's on a GPU that has it, else products of a matrix and a vector.

    Raises:
        BadInput: the user names a kernel that the device cannot run.
    """
    kernel = chosen("decode")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernel == "triton" and not (find_spec("triton") and (device.type == "cuda" or interpreted)):
        raise BadInput(f"{VARIABLE} wants triton for decode, which needs Triton and an NVIDIA GPU; leave it out.")
    if kernel is None:
        kernel = "turned" if device.type == "cpu" and intel() else "plain"
        kernel = "triton" if device.type == "cuda" and find_spec("triton") else kernel
    return kernel


def linear_kernel(size: int, inputs: int) -> str:
    """The kernel of a float32 linear layer of a decoding step on a CPU.

    Args:
        size: bytes of the layer's weight.
        inputs: input channels of the layer.
    """
    small = size <= TURNED_BYTES and inputs <= TURNED_INPUTS
    return chosen("linear") or ("turned" if intel() and small else "blocked")

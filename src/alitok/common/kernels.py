"""Which kernel computes what, if several do: ALITOK_KERNELS=attention=fused,decode=plain overrides the choice."""

import os
from importlib.util import find_spec

import torch

from alitok.common.build import nearest
from alitok.common.errors import BadInput

VARIABLE = "ALITOK_KERNELS"
# For one operation all kernels agree but for rounding.
KERNELS = {
    "attention": ("plain", "fused"),  # of a training step on a CPU
    "decode": ("plain", "fused", "triton"),  # cache write and attention of a decoding step
}


def chosen(operation: str) -> str | None:
    """The kernel that the user names for an operation; None if the choice is ours.

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


def decode_kernel(device: torch.device) -> str:
    """The kernel of a decoding step: Triton's on a GPU that has it, else products of a matrix and a vector."""
    kernel = chosen("decode")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernel == "triton" and not (find_spec("triton") and (device.type == "cuda" or interpreted)):
        raise BadInput(f"{VARIABLE} wants triton for decode, which needs Triton and an NVIDIA GPU; leave it out.")
    if kernel is None:
        kernel = "triton" if device.type == "cuda" and find_spec("triton") else "plain"
    return kernel

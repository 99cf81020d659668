"""Devices by name: what their makers state, and this machine's processor as measured."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes:
        name: as on the command line.
        half, tf32, single: FLOP/s of dense matrix products in bfloat16 and float16, in TF32, and in float32.
        memory: bytes.
    """

    name: str
    half: float
    tf32: float
    single: float
    memory: int

    def rate(self, precision: str) -> float:
        """FLOP/s for a precision as the ledger names it: a dtype, with "-conv" behind it for convolutions."""
        dtype, _, convolution = precision.partition("-")
        if dtype in ("bfloat16", "float16"):
            return self.half
        # PyTorch's own choice: float32 convolutions run in TF32, products only where they are told to.
        tf32 = torch.backends.cudnn.allow_tf32 if convolution else torch.backends.cuda.matmul.allow_tf32
        return self.tf32 if tf32 else self.single

    def seconds(self, flops: Mapping[tuple[str, str], float], utilisation: float) -> float:
        """How long these FLOPs, (part, precision) -> count, take at a share of the peak."""
        return sum(count / self.rate(precision) for (_, precision), count in flops.items()) / utilisation


# The makers' data sheets, dense, tensor cores with float32 accumulation; the SXM form where there are several.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Hardware("H100", 989e12, 494e12, 67e12, 80 * 10**9),
        Hardware("A100", 312e12, 156e12, 19.5e12, 80 * 10**9),
        Hardware("H200", 989e12, 494e12, 67e12, 141 * 10**9),
        Hardware("RTX 4090", 165e12, 82.6e12, 82.6e12, 24 * 10**9),
    )
}


def measure_cpu(size: int = 1024) -> Hardware:
    """This machine's processor: the best of a few products of two square matrices, in half a second or so."""
    half, single = (_matmul_rate(size, dtype) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware("this CPU", half, single, single, memory)


@torch.no_grad()
def _matmul_rate(size: int, dtype: torch.dtype) -> float:
    a = torch.ones(size, size, dtype=dtype)
    a @ a  # the first call sets up
    best, end = float("inf"), time.perf_counter() + 0.25
    while best == float("inf") or time.perf_counter() < end:  # once even where this process was put aside
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

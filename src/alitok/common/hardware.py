"""Speed and memory of devices: GPUs by their makers' data sheets, this machine's processor by measurement."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alitok.common.devices import has_bfloat16

EMULATED = 128  # rows of a product in a type that the processor lacks; 2,048 would take minutes


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes:
        name: the name on the command line.
        half, tf32, single: FLOP/s of dense matrix products in bfloat16 and float16, in TF32, and in float32.
        memory: bytes.
    """

    name: str
    half: float
    tf32: float
    single: float
    memory: int

    def rate(self, precision: str) -> float:
        """FLOP/s for a precision of the ledger: a dtype's name or "tf32"."""
        if precision in ("bfloat16", "float16"):
            return self.half
        return self.tf32 if precision == "tf32" else self.single

    def seconds(self, flops: Mapping[tuple[str, str], float], utilization: float) -> float:
        """Seconds that FLOPs, (part, precision) -> count, take at a share of the peak rate."""
        return sum(count / self.rate(precision) for (_, precision), count in flops.items()) / utilization


# From the makers' data sheets: dense, tensor cores with float32 accumulation; the SXM form if there are several.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Hardware("H100", 989e12, 494e12, 67e12, 80 * 10**9),
        Hardware("A100", 312e12, 156e12, 19.5e12, 80 * 10**9),
        Hardware("H200", 989e12, 494e12, 67e12, 141 * 10**9),
        Hardware("RTX 4090", 165e12, 82.6e12, 82.6e12, 24 * 10**9),
    )
}


# Words in the names of other forms of these cards, which have other rates.
OTHER_FORMS = {"pcie", "nvl", "mig", "laptop", "d"}


def known_gpu(full_name: str) -> Hardware | None:
    """The row of `GPUS` for the driver's name of a card, e.g. "NVIDIA H100 80GB HBM3"; None if there is none."""
    words = f" {' '.join(re.findall('[a-z0-9]+', full_name.lower()))} "
    if OTHER_FORMS & set(words.split()):
        return None
    return next((gpu for name, gpu in GPUS.items() if f" {name.lower()} " in words), None)


def measure_cpu(size: int = 1024) -> Hardware:
    """Measures this machine's processor with products of two square matrices, in a quarter of a second."""
    half, single = (matmul_rate(size, dtype, torch.device("cpu"), 0.1) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware("this CPU", half, single, single, memory)


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """FLOP/s of the product of two square matrices: the fastest in about this many seconds."""
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        size = min(size, EMULATED)
    # Random, because constant numbers switch fewer transistors, so that a GPU keeps a higher clock.
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / best(lambda: a @ a, device, seconds)


@torch.no_grad()
def best(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The shortest time of a call in seconds, among the calls that fit in `seconds` (at least two)."""
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        times.append(timed(function, device))
    return min(times)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call; on a GPU, measured by its events."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def faster_precision() -> str:
    """bf16-mixed if this processor multiplies bfloat16 matrices faster than float32 ones, else 32-true."""
    cpu = measure_cpu(512)
    return "bf16-mixed" if cpu.half > 1.3 * cpu.single else "32-true"

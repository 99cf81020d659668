"""Foundation of the benchmarks: this machine's limits, measured in the same run, and the rows of results."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from alitok.common.build import nearest
from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.files import experiments_folder
from alitok.common.hardware import Hardware, best, matmul_rate, timed
from alitok.common.kernels import chosen, decode_kernel, linear_kernel
from alitok.config import load_yaml, resolve
from alitok.models.transformer import attention_kernel
from alitok.reports.provenance import processor
from alitok.sampling.weights import PRECISION

BASELINE_BATCH = 8  # most images on a GPU: baselines store tensors that the fused forms never make
T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """This machine's measured limits.

    Attributes:
        device: where the benchmarks run.
        float32, bfloat16: FLOP/s of products of large square matrices, the best of several.
        bandwidth: bytes per second when a large buffer is read.
        tf32: as `float32`, with factors rounded to TF32; None on a CPU.
    """

    device: torch.device
    float32: float
    bfloat16: float
    bandwidth: float
    tf32: float | None = None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def rates(self) -> Hardware:
        return Hardware("", self.bfloat16, self.tf32 or self.float32, self.float32, 0)

    def peak(self, precision: str) -> float:
        """FLOP/s in "float32" (in TF32 if that is enabled) or "bfloat16"."""
        rounded = precision == "float32" and torch.backends.cuda.matmul.allow_tf32
        return self.rates.rate("tf32" if rounded else precision)

    def seconds(self, flops: Mapping[tuple[str, str], float]) -> float:
        """Seconds that FLOPs, (part, precision) -> count, take at the measured peaks."""
        return self.rates.seconds(flops, 1.0)

    def baseline_batch(self, batch: int) -> int:
        """The baseline's batch when `batch` is measured."""
        return min(batch, BASELINE_BATCH) if self.cuda else batch

    def record(self) -> dict[str, Any]:
        """The machine for the JSON file."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "device": torch.cuda.get_device_name(self.device) if self.cuda else processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "memory_bytes": torch.cuda.get_device_properties(self.device).total_memory if self.cuda else memory,
            "torch": torch.__version__,
            "float32_flops": self.float32,
            "tf32_flops": self.tf32,
            "bfloat16_flops": self.bfloat16,
            "memory_bandwidth": self.bandwidth,
            "kernels": {
                "attention": attention_kernel or "by type: see docs/performance.md",
                "decode": decode_kernel(self.device),
                "linear": chosen("linear") or ("turned if small" if linear_kernel(0, 0) == "turned" else "blocked"),
            },
        }


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: e.g. "sampling-177M-b8-float32".
        value: None if it ran out of memory.
        baseline, limit: in the same unit; None if there is none.
        unit: unit of the value.
        bound: what sets the limit.
        less: lower values are better.
        notes: other measured values, by name.
    """

    name: str
    value: float | None
    unit: str
    baseline: float | None = None
    limit: float | None = None
    bound: str = ""
    less: bool = False
    notes: Mapping[str, Any] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline."""
        if self.baseline is None or self.value is None:
            return None
        return self.baseline / self.value if self.less else self.value / self.baseline

    @property
    def share_of_limit(self) -> float | None:
        if self.limit is None or self.value is None:
            return None
        return self.limit / self.value if self.less else self.value / self.limit

    def record(self) -> dict[str, Any]:
        """The row for the JSON file."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "limit": self.limit,
            "share_of_limit": self.share_of_limit,
            "bound": self.bound,
            **({"reason": "out of memory"} if self.value is None else {}),
            **(self.notes or {}),
        }


@dataclass(frozen=True)
class Options:
    """What is measured, and at which sizes.

    Attributes:
        experiment: a folder in experiments/.
        sizes: sizes of the generator, files in experiments/sizes/.
        batches: sequences drawn together, and images in a training step; None for a default by device.
        precisions: precisions of the weights in sampling, of autocast in training.
    """

    machine: Machine
    experiment: str
    sizes: tuple[str, ...]
    batches: tuple[int, ...] | None
    precisions: tuple[str, ...]

    def files(self, part: str, size: str | None = None) -> list[Path]:
        """The YAML files of a part ("generator", "tokenizer-stage1").

        Raises:
            BadInput: no such experiment or size, with the nearest one.
        """
        folder = experiments_folder() / self.experiment
        if not (folder / f"{part}.yaml").is_file():
            known = sorted(path.parent.name for path in experiments_folder().glob(f"*/{part}.yaml"))
            raise BadInput(f"experiments/ has no {self.experiment!r} with {part}{nearest(self.experiment, known)}.")
        files = [folder / f"{part}.yaml"]
        if size is not None and "size" in load_yaml(files[0]).get("define", {}):
            sizes = experiments_folder() / "sizes"
            known = sorted(path.stem for path in sizes.glob("*.yaml"))
            if size not in known:
                raise BadInput(f"{self.experiment} has no size {size!r}; there are {', '.join(known)}.")
            files.append(sizes / f"{size}.yaml")
        return files

    def model(self, part: str, size: str | None = None) -> dict[str, Any]:
        """Arguments of the part's LightningModule, from which models are built."""
        arguments: dict[str, Any] = resolve(self.files(part, size))["model"]["init_args"]
        return arguments

    def label(self, size: str) -> str:
        """A generator's name in rows: its size, preceded by the experiment if that is not the published one."""
        if self.experiment == "release":
            return size
        return f"{self.experiment}-{size}" if len(self.files("generator", size)) > 1 else self.experiment


def measure_machine(device: torch.device, seconds: float = 1.0) -> Machine:
    """Measure the limits, for about `seconds` each."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 2048
    with float32_products(tf32=False):
        rates = {name: matmul_rate(size, dtype, device, seconds) for name, dtype in PRECISION.items()}
    with float32_products(tf32=True):
        tf32 = matmul_rate(size, torch.float32, device, seconds) if cuda else None
    buffer = torch.zeros(1 << (30 if cuda else 28), dtype=torch.uint8, device=device).view(torch.int64)
    bandwidth = buffer.nbytes / best(buffer.sum, device, seconds)
    return Machine(device, rates["float32"], rates["bfloat16"], bandwidth, tf32)


def if_it_fits(function: Callable[[], T]) -> T | None:
    """The function's result; None if the GPU runs out of memory, which is then freed."""
    try:
        return function()
    except torch.OutOfMemoryError:
        result = None
    gc.collect()  # the error and its frames' tensors are gone by now
    torch.cuda.empty_cache()
    return result


def per_second(count: float, seconds: float | None) -> float | None:
    """Count per second; None if the time is None."""
    return None if seconds is None else count / seconds


def typical(function: Callable[[], Any], device: torch.device, calls: int) -> float:
    """The median time of a call in seconds; a first call, which sets up, is not counted."""
    function()
    return statistics.median(timed(function, device) for _ in range(calls))


def wait(device: torch.device) -> float:
    """Wait until the device is idle; return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

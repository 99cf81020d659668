"""A check of a new machine in one to two minutes: what is right, slow, missing or wrong, and what to do about it."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from alitok.common.compiler import has_compiler
from alitok.common.errors import BadInput
from alitok.common.files import find_weights, hub_checkpoints
from alitok.common.hardware import faster_precision, known_gpu
from alitok.data.datamodule import ImageNetDataModule
from alitok.evaluation.clean_fid import PYTORCH_FILE, PYTORCH_ORIGIN
from alitok.evaluation.extractors import INCEPTION_FILE, INCEPTION_ORIGIN, clean_fid_folder
from alitok.networks.frozen import CONVNEXT_SMALL, VGG16
from alitok.profiling.bench_data import decoding_rate, write_pictures
from alitok.profiling.bench_machine import Machine, measure_machine
from alitok.studies.doctor.full import WAITS, read_lines, run_stage, worded
from alitok.studies.processes import free_port

State = Literal["right", "slow", "missing", "wrong"]  # slow: also what only some runs need
PACKAGES = ("alitok", "torch", "torchvision", "lightning", "triton", "datasets", "torchmetrics")
GIB = 2**30
# FLOPs to train stage 1 at 256 x 256 on one image, forward and backward (`alitok describe`), and the expected share of
# the peak.
STAGE1_FLOPS, REACHED = 0.93e12, 0.4


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        found: what was found or measured, in words.
        todo: what to do, if it is not right.
        value, unit: the measured number; None if there is none.
        wanted: the least value that is right; None if there is no bound.
    """

    name: str
    state: State
    found: str
    todo: str = ""
    value: float | None = None
    unit: str = ""
    wanted: float | None = None

    def record(self) -> dict[str, Any]:
        """The line for the JSON file; without a number its value is in words."""
        value = self.found if self.value is None else self.value
        record = {"name": self.name, "state": self.state, "value": value, "unit": self.unit}
        return {**record, "wanted": self.wanted, "todo": self.todo}


def look(device: torch.device, folder: Path, machines: list[Machine]) -> Iterator[Finding]:
    """Run all checks, one finding after the other. A check that fails is a finding too.

    Args:
        folder: future folder of runs.
        machines: gets the measured machine, unless measuring fails.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "device": lambda: devices(device, machines),
        "collectives": lambda: collectives(device),
        "compiler": lambda: compilers(device),
        "shared memory": shared_memory,
        "disk": lambda: disk(folder),
        "weights": weights,
        "loader": lambda: loader(machines),
        "paths": lambda: paths(device),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # any error is a finding
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Finding(name, "wrong", words, "see the error; ALITOK_DEBUG=1 shows where it comes from")


def versions() -> Iterator[Finding]:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            if package != "triton":
                yield Finding(package, "missing", "not installed", f"pip install {package}")
    yield Finding("versions", "right", ", ".join(found))


def devices(device: torch.device, machines: list[Machine]) -> Iterator[Finding]:
    cores = physical_cores()
    threads = torch.get_num_threads()
    idle = threads < cores and device.type == "cpu"
    todo = f"OMP_NUM_THREADS={cores} lets torch take all cores" if idle else ""
    words, most = f"{cores} cores, torch takes {threads}", cores if device.type == "cpu" else None
    yield Finding("processor", "slow" if idle else "right", words, todo, threads, "threads", most)
    if device.type == "cpu" and torch.version.cuda and Path("/proc/driver/nvidia").exists():
        todo = "the driver is older than this torch; take a newer driver, or a torch built for an older CUDA"
        yield Finding("GPU", "wrong", "an NVIDIA driver is here, and torch finds no GPU", todo)
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        # before anything is measured: torch keeps the memory of what it measures
        name, memory = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory
        free, _ = torch.cuda.mem_get_info(index)
        busy = free < 0.9 * memory
        words = f"{name}, {free / GIB:.0f} of {memory / GIB:.0f} GiB free"
        todo = "other work holds memory there" * busy
        yield Finding(f"GPU {index}", "slow" if busy else "right", words, todo, free / GIB, "GiB", 0.9 * memory / GIB)
    machine = measure_machine(device, 0.3)
    machines.append(machine)
    rates = f"float32 {machine.float32 / 1e9:,.0f}, bfloat16 {machine.bfloat16 / 1e9:,.0f} GFLOP/s"
    rates += f", memory {machine.bandwidth / 1e9:.0f} GB/s"
    if device.type == "cpu":
        yield Finding("speed", "right", f"{rates}; train in {faster_precision()}")
        return
    table = known_gpu(torch.cuda.get_device_name(device))
    wanted = None if table is None else 0.6 * table.half / 1e9
    rate = machine.bfloat16 / 1e9
    slow = wanted is not None and rate < wanted
    todo = "below 60 % of its data sheet: is it hot, shared or limited in power? nvidia-smi -q -d PERFORMANCE"
    yield Finding("speed", "slow" if slow else "right", rates, todo * slow, rate, "GFLOP/s", wanted)


def physical_cores() -> int:
    """Number of cores that this process may use. Torch starts one thread on each; hyperthreads share a core's units."""
    allowed = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(number)).read_text() for number in allowed})
    except OSError:  # not every container shows them
        return len(allowed)


def collectives(device: torch.device) -> Iterator[Finding]:
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if device.type == "cuda" and count == 1:
        yield Finding("collectives", "right", "one GPU: nothing to exchange")
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "seconds"
        group = mp.spawn(_exchange, args=(count, device.type, free_port(), str(file)), nprocs=count, join=False)
        end = time.monotonic() + 60
        while not group.join(timeout=1):
            if time.monotonic() > end:
                for process in group.processes:
                    process.kill()
                yield Finding("collectives", "wrong", f"{count} processes hang", "set NCCL_DEBUG=INFO and run again")
                return
        rate = float(file.read_text())
    wanted = 5 if device.type == "cuda" else None
    slow = wanted is not None and rate < wanted
    words = f"{count} x {device.type}: sums agree, {rate:.1f} GB/s"
    todo = "see nvidia-smi topo -m: no NVLink?" * slow
    yield Finding("collectives", "slow" if slow else "right", words, todo, rate, "GB/s", wanted)


def _exchange(rank: int, count: int, kind: str, port: int, file: str) -> None:
    """Sum one tensor over all processes, several times; rank 0 writes GB/s."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    where = f"tcp://127.0.0.1:{port}"
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=count)
    data = torch.full((2**26 if kind == "cuda" else 2**20,), float(rank + 1), device=device)
    dist.all_reduce(data)
    if float(data[-1]) != count * (count + 1) / 2:
        raise BadInput(f"The sum over {count} processes is {float(data[-1])}, not {count * (count + 1) / 2}.")
    start = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(data)
    float(data[0])
    if rank == 0:
        Path(file).write_text(str(3 * data.nbytes / 1e9 / (time.perf_counter() - start)))
    dist.barrier()
    dist.destroy_process_group()


def compilers(device: torch.device) -> Iterator[Finding]:
    gxx = has_compiler()
    words = "g++ is here" if gxx else "no C++ compiler"
    todo = "" if gxx else "install g++ for --compile and compiled training steps; all else works without"
    yield Finding("compiler", "right" if gxx else "slow", words, todo)
    if device.type == "cuda":
        triton = find_spec("triton") is not None
        words = "Triton is here" if triton else "no Triton"
        yield Finding("Triton", "right" if triton else "missing", words, "" if triton else "pip install triton")


def shared_memory() -> Iterator[Finding]:
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    total, _, free = shutil.disk_usage(place)
    few = free < GIB
    todo = "loaders pass batches through it: start the container with --shm-size=8g, or set data.num_workers to 0"
    words = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free in {place}"
    yield Finding("shared memory", "slow" if few else "right", words, todo * few, free / GIB, "GiB", 1)


def disk(folder: Path) -> Iterator[Finding]:
    while not folder.is_dir():
        folder = folder.parent
    data, free = os.urandom(2**24), shutil.disk_usage(folder).free
    with TemporaryDirectory(dir=folder) as scratch:
        start = time.perf_counter()
        with open(Path(scratch) / "file", "wb") as file:
            for _ in range(8):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rate = 8 * len(data) / 1e6 / (time.perf_counter() - start)
    slow, full = rate < 50, free < 10 * GIB
    todo = "a checkpoint of 662M takes 8 GB: put runs on another disk (--define.run)"
    words = f"{rate:.0f} MB/s written in {folder}"
    yield Finding("disk", "slow" if slow else "right", words, todo * slow, rate, "MB/s", 50)
    words = f"{free / GIB:.0f} GiB free in {folder}"
    yield Finding("disk space", "slow" if full else "right", words, todo * full, free / GIB, "GiB", 10)


def weights() -> Iterator[Finding]:
    """Whether the files of published networks for losses and measures are here; a run may need none of them."""
    for name, file, folder, origin in (
        ("Inception for FID", INCEPTION_FILE, clean_fid_folder(), INCEPTION_ORIGIN),
        ("Inception for clean-fid", PYTORCH_FILE, hub_checkpoints(), PYTORCH_ORIGIN),
        ("VGG16 for LPIPS", VGG16.file, hub_checkpoints(), VGG16.origin),
        ("ConvNeXt-S", CONVNEXT_SMALL.file, hub_checkpoints(), CONVNEXT_SMALL.origin),
    ):
        try:
            yield Finding(name, "right", str(find_weights(file, None, folder, origin)))
        except BadInput:
            yield Finding(name, "slow", f"no {folder / file}", f"download {origin}")


def loader(machines: list[Machine]) -> Iterator[Finding]:
    """Whether processes on all cores decode pictures as fast as stage 1 trains on them."""
    cores = physical_cores()
    with TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder), 16)
        module = ImageNetDataModule(str(pictures), image_size=256, global_batch=16, num_workers=0, val_fraction=0.0)
        rate = cores * decoding_rate(module, 48)
    words = f"{rate:.0f} training crops/s of 256 x 256 on {cores} cores"
    if not machines:
        yield Finding("loader", "right", words, "", rate, "crops/s")
        return
    count = torch.cuda.device_count() if machines[0].cuda else 1
    wanted = count * REACHED * machines[0].bfloat16 / STAGE1_FLOPS
    slow = rate < wanted
    todo = "more cores, or smaller files: pictures of 300 pixels decode several times faster than of 1,600"
    words += f"; stage 1 takes {wanted:.2g}"
    yield Finding("loader", "slow" if slow else "right", words, todo * slow, rate, "crops/s", wanted)


def paths(device: torch.device) -> Iterator[Finding]:
    """Run every path in tiny: graph = eager = CPU, training and resuming, FSDP2 with samples."""
    with TemporaryDirectory() as folder:
        for stage in ("right", "strategies"):
            outcome = run_stage(stage, Path(folder), str(device), tiny=True)
            if not outcome.startswith("done"):
                log = (Path(folder) / f"{stage}.txt").read_text(errors="replace").strip().splitlines()
                yield Finding(stage, "wrong", f"{outcome}; {log[-1] if log else 'nothing printed'}"[:300], "see above")
            for line in read_lines(Path(folder), stage):
                if "failed" in line or line["value"] == "no":
                    yield Finding(line["name"], "wrong", str(line.get("failed", "no")), "please report it")
                elif "skipped" not in line:
                    number = None if isinstance(line["value"], str) else line["value"]
                    waits = line["name"].startswith(WAITS)
                    todo = "please report it" * waits
                    yield Finding(line["name"], "slow" if waits else "right", worded(line), todo, number, line["unit"])

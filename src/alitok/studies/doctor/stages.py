"""The stages of the long check, each run in a separate process. They measure with the code of `alitok bench`."""

import json
import math
import os
import pkgutil
import platform
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from alitok.common.build import build
from alitok.common.devices import float32_products, pick_device
from alitok.common.draw import Draw
from alitok.common.hardware import best
from alitok.data.encoding import Encoding, tokenize
from alitok.data.sources import open_source
from alitok.losses import perceptual
from alitok.profiling import bench_data, bench_training
from alitok.profiling.bench_machine import Machine, Options, measure_machine, typical
from alitok.profiling.bench_sampling import draw_seconds, random_generator
from alitok.profiling.cost import Layout, cost
from alitok.sampling.generate import Sampler
from alitok.sampling.sets import draw_set, set_settings
from alitok.sampling.weights import for_inference
from alitok.studies.doctor.checks import right, strategies
from alitok.studies.doctor.full import scratch


class Day:
    """One stage: its device, its size, and where its numbers are written."""

    def __init__(self, stage: str, device: str, out: str | Path, tiny: bool) -> None:
        self.stage, self.out, self.tiny = stage, Path(out).resolve(), tiny
        self.device = pick_device(device)
        self.cuda = self.device.type == "cuda"
        self.experiment = "demo" if tiny else "release"
        self.start, self.failed = time.perf_counter(), False
        self.file = self.out / f"{stage}.jsonl"
        self.scratch = scratch(self.out, stage)

    def run(self) -> int:
        """Run the stage; return the exit status, 1 if a number failed."""
        shutil.rmtree(self.scratch, ignore_errors=True)  # left by an earlier run
        try:
            globals()[self.stage](self)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return int(self.failed)

    def say(self, name: str, value: Any, unit: str = "", **notes: Any) -> None:
        """Write one number to the stage's file, synced to disk at once."""
        seconds = round(time.perf_counter() - self.start, 2)
        line = json.dumps({"name": name, "value": value, "unit": unit, **notes, "at_second": seconds})
        print(line, flush=True)
        with open(self.file, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def skip(self, name: str, why: str) -> None:
        self.say(name, None, skipped=why)

    def number(self, name: str, make: Callable[[], Any], unit: str = "", **notes: Any) -> Any:
        """Write the result of `make`, with yes and no for True and False; if it fails, record that and continue."""
        try:
            value = make()
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            self.say(name, None, failed=f"{type(error).__name__}: {str(error).splitlines()[:1]}")
            return None
        finally:
            if self.cuda:
                torch.cuda.empty_cache()
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        self.failed |= value is False
        self.say(name, shown, unit, **notes)
        return value

    def rate(self, name: str, seconds: Callable[[int], float], batch: int, limit: float | None = None) -> None:
        """Write images per second at a batch, or at half of it if it does not fit; `limit` in the same unit."""

        def make() -> float:
            nonlocal batch
            try:
                return batch / seconds(batch)
            except torch.OutOfMemoryError:
                batch //= 2
            torch.cuda.empty_cache()
            return batch / seconds(batch)

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        first = batch
        value = self.number(f"{name}, batch {batch}", make, "images/s")
        if batch != first:
            self.say(f"{name}: did not fit; batch", batch)
        if value is not None:
            peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else math.nan
            notes: dict[str, Any] = {} if math.isnan(peak) else {"gigabytes": round(peak, 2)}
            if limit:
                self.say(f"{name}: share of products at peak", round(value / limit, 3), **notes, batch=batch)
            elif notes:
                self.say(f"{name}: peak memory", notes["gigabytes"], "GB", batch=batch)

    def machine(self) -> Machine:
        """The machine that stage `limits` measured, else a brief measurement."""
        file = self.out / "machine.json"
        if not file.is_file():
            return measure_machine(self.device, 0.1)
        known = json.loads(file.read_text())
        return Machine(self.device, **known)

    def options(self, size: str = "177M", experiment: str | None = None) -> Options:
        return Options(self.machine(), experiment or self.experiment, (size,), None, ("bfloat16",))


def setup(day: Day) -> None:
    verbs = [module.name for module in pkgutil.iter_modules(import_module("alitok.commands").__path__)]

    def every_verb() -> bool:
        return all(import_module(f"alitok.commands.{verb}") for verb in verbs)

    day.say("device", torch.cuda.get_device_name(day.device) if day.cuda else platform.processor() or "cpu")
    day.say("torch", torch.__version__, cuda=torch.version.cuda, python=platform.python_version())
    day.say("cores", len(os.sched_getaffinity(0)))
    day.number(f"{len(verbs)} modules of verbs can be imported", every_verb)


def limits(day: Day) -> None:
    machine = measure_machine(day.device, 0.05 if day.tiny else 1.0)
    values = {name: getattr(machine, name) for name in ("float32", "bfloat16", "bandwidth", "tf32")}
    (day.out / "machine.json").write_text(json.dumps(values))
    for name, value in values.items():
        if value is None:
            day.skip(name, "no GPU")
        else:
            day.say(name, value / 1e12, "TB/s read" if name == "bandwidth" else "TFLOP/s")
    a = torch.zeros(1 << (20 if day.tiny else 29), device=day.device)
    b = torch.ones_like(a)
    day.number("copy", lambda: 2 * a.nbytes / best(lambda: a.copy_(b), day.device, 0.5) / 1e12, "TB/s read and written")
    small = torch.zeros(1024, device=day.device)

    def thousand() -> None:
        for _ in range(1000):
            small.add_(1.0)

    step = thousand
    if day.cuda:
        thousand()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            thousand()
        step = graph.replay
    day.number("a tiny kernel" + " in a graph" * day.cuda, lambda: 1e3 * best(step, day.device, 0.2), "us")


def sampling(day: Day) -> None:
    options = day.options("662M")
    generator = random_generator(options.model("generator", "662M")["generator"], day.device)

    def seconds(batch: int, precision: str = "bfloat16", compiled: bool = False) -> float:
        draw = Draw(3.0, precision=precision, compiled=compiled)
        took, quarters = draw_seconds(generator, batch, draw, options.machine)
        day.say(f"ms a step by quarter, batch {batch}", " ".join(f"{q:.2f}" for q in quarters), "ms")
        return took

    with float32_products(tf32=True):  # as `alitok sample`
        for batch in (1, 2) if day.tiny else (64, 256, 512):
            day.rate("662M bfloat16", seconds, batch)
        batch = 2 if day.tiny else 256
        day.number("kernels of a step", partial(profile, day, generator, batch))
        day.rate("662M float32", partial(seconds, precision="float32"), batch)
        day.rate("662M bfloat16 compiled", partial(seconds, compiled=True), batch)


def profile(day: Day, generator: Any, batch: int) -> int:
    """Count the kernels (operations on a CPU) of one step; writes the table to profile.txt."""
    sampler = Sampler(generator, Draw(3.0, precision="bfloat16"))
    labels = torch.arange(batch) % generator.num_classes
    sampler.sample(labels)
    loop = sampler.loop
    assert loop is not None
    kinds = [torch.profiler.ProfilerActivity.CUDA if day.cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.inference_mode(), torch.profiler.profile(activities=kinds) as seen:
        loop.position.fill_(generator.num_tokens // 2)
        if loop.graphs is None:
            loop.advance()
        else:
            loop.graphs.run(loop.cache.length, loop.advance)
            torch.cuda.synchronize()
    by = "cuda_time_total" if day.cuda else "cpu_time_total"
    (day.out / "profile.txt").write_text(seen.key_averages().table(sort_by=by, row_limit=40))
    return sum(event.count for event in seen.key_averages())


def train(
    day: Day, name: str, options: Options, part: str, size: str | None, batch: int, compiled: bool, tf32: bool = True
) -> None:
    """Write images per second of a training step in bf16, and its share of the peak."""
    bench_training.STEPS |= {"cuda": 10, "cpu": 1}
    bench_training.WARM_UP |= {"cpu": 1}

    def seconds(images: int) -> float:
        config = bench_training.training_config(options, part, size, "bfloat16", images)
        config["model"]["init_args"] |= {"compile_blocks": compiled, "tf32": tf32}
        return bench_training.step_seconds(config, options.machine.device)

    config = bench_training.training_config(options, part, size, "bfloat16", 2)
    config["model"]["init_args"] |= {"tf32": tf32}
    (turn,) = cost(config, Layout("cuda" if day.cuda else "cpu")).turns
    day.rate(name, seconds, batch, limit=2 / options.machine.seconds(turn.flops))


def generators(day: Day) -> None:
    for size, batch in (("177M", 2),) if day.tiny else (("662M", 32), ("177M", 64)):
        for compiled in (False, True):
            name = f"{size} bf16-mixed" + " compiled" * compiled
            train(day, name, day.options(size), "generator", size, batch, compiled)


def stage1(day: Day) -> None:
    options, batch = day.options(experiment=None if day.tiny else "imagenet256"), 2 if day.tiny else 48
    load = perceptual.load
    for name, tf32, channels_last, compiled in (
        ("exact float32", False, False, False),
        ("TF32", True, False, False),
        ("TF32, channels last", True, True, False),
        ("TF32, compiled", True, False, True),
    ):
        if channels_last:
            perceptual.load = lambda *words: load(*words).to(memory_format=torch.channels_last)
        train(day, f"stage 1, {name}", options, "tokenizer-stage1", None, batch, compiled, tf32)
        perceptual.load = load


def tokenizing(day: Day) -> None:
    tokenizer: Any = build(day.options().model("tokenizer-stage1")["tokenizer"]).eval().to(day.device)
    tokenizer.card = {"digest": "0" * 64}
    side = int(1.1 * tokenizer.image_size)
    pictures = torch.randint(0, 256, (2 if day.tiny else 25, 3, side, side), dtype=torch.uint8)
    exact: list[Any] = []

    def crops(precision: str) -> float:
        encode = Encoding(tokenizer, "ten", len(pictures), precision)
        with float32_products(tf32=precision == "tf32"):
            exact.append(encode(pictures))
            return 10 * len(pictures) / typical(lambda: encode(pictures), day.device, 2 if day.tiny else 10)

    for precision in ("32", "tf32", "bf16"):
        day.number(f"encoder in {precision}", partial(crops, precision), "crops/s")
        day.say(f"ids equal to 32's, {precision}", float((exact[-1] == exact[0]).float().mean()))
    forward, tokenizer.encoder.forward = tokenizer.encoder.forward, torch.compile(tokenizer.encoder.forward)
    day.number("encoder in bf16, compiled", partial(crops, "bf16"), "crops/s")
    tokenizer.encoder.forward = forward
    few, many = (2, 20) if day.tiny else (256, 2048)

    def end_to_end(precision: str) -> float:
        """Crops per second beyond the first `few` pictures, so that the start is not counted."""
        taken = []
        for count in (few, many):
            source = open_source(str(folder), "train", val_fraction=0.0, count=count)
            out, workers = day.scratch / f"tokens-{precision}-{count}", 2 if day.tiny else len(os.sched_getaffinity(0))
            taken.append(tokenize(tokenizer, source, out, batch=250, workers=workers, precision=precision))
        return (taken[1].crops - taken[0].crops) / (taken[1].seconds - taken[0].seconds)

    folder = bench_data.write_pictures(day.scratch / "pictures", min(40, many))
    for index in range(40, many):
        place = folder / "ab"[index % 2] / f"{index}.jpg"
        if not place.exists():
            os.link(folder / "ab"[index % 2] / f"{index % 40}.jpg", place)
    for precision in ("32", "bf16"):
        day.number(f"end to end in {precision}", partial(end_to_end, precision), "crops/s")


def rest(day: Day) -> None:
    options = day.options()
    generator = random_generator(options.model("generator", "177M")["generator"], day.device)
    tokenizer: Any = build(options.model("tokenizer-stage2")["tokenizer"]).eval().to(day.device)
    generator.card, tokenizer.card = {"digest": "1" * 64, "seed": 0}, {"digest": "0" * 64}
    batch = 2 if day.tiny else 128
    ids = torch.randint(generator.codebook_size, (batch, *generator.id_shape), device=day.device)
    decode = partial(for_inference(tokenizer, leave=("encoder",)).decode, ids)
    with torch.inference_mode(), float32_products(tf32=True):
        for name, half in (("TF32", False), ("bfloat16 autocast", True)):
            with torch.autocast(day.device.type, torch.bfloat16, enabled=half):
                day.number(f"decoding in {name}", lambda: batch / typical(decode, day.device, 3), "images/s")
    for name, count in (("set.npz", 4), ("set", 2)) if day.tiny else (("set.npz", 1024), ("set", 128)):
        draw = Draw(guidance=3.0, precision="bfloat16")
        settings = set_settings(generator, tokenizer, ("g", "t"), draw, count)

        def seconds(count: int, out: Path = day.scratch / name, settings: Any = settings) -> float:
            start = time.perf_counter()
            with float32_products(tf32=True):
                draw_set(generator, tokenizer, out, settings, min(256, count))
            return time.perf_counter() - start

        day.rate(f"draw_set to {name}", seconds, count)
    folder = bench_data.write_pictures(day.scratch / "pictures", 8 if day.tiny else 64)
    row = bench_data.image_batches(folder)
    day.say(f"loader, {len(os.sched_getaffinity(0))} workers", row.value, row.unit)
    extractor = bench_data.RandomInception(day.device)
    images = torch.randint(0, 256, (2 if day.tiny else 128, 3, 256, 256), dtype=torch.uint8)
    day.number("random Inception", lambda: len(images) / typical(lambda: extractor(images), day.device, 3), "images/s")


__all__ = ["Day", "generators", "limits", "rest", "right", "sampling", "setup", "stage1", "strategies", "tokenizing"]

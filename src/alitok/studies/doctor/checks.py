"""Checks of correctness. Each gives yes or no; after a no the other checks still run."""

import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from alitok.artifacts.folder import save_artifact
from alitok.common.build import build, import_class
from alitok.common.compiler import has_compiler
from alitok.common.devices import float32_products
from alitok.common.draw import Draw
from alitok.common.files import experiments_folder
from alitok.common.hardware import best
from alitok.config import compose_run
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.models.generator import Generator
from alitok.sampling.generate import Sampler
from alitok.studies.doctor.full import WAITS

SHAPE: dict[str, Any] = {"num_classes": 5, "num_prefix": 3, "grid": (4, 4), "width": 64, "depth": 2, "heads": 4}


def small(kind: Callable[..., Any] = Generator, **more: Any) -> Any:
    """A generator with a random output head too."""
    torch.manual_seed(0)
    generator = kind(codebook_size=64, **SHAPE, **more)
    torch.nn.init.normal_(generator.output.weight, std=0.3)
    return generator.eval()


def drawn(
    generator: Any, device: Any, batch: int = 5, schedule: str = "power-cosine", precision: str = "float32",
    graphs: bool = True, keep: int | None = None,
) -> Tensor:  # fmt: skip
    """Ids (3, batch, N) of three consecutive batches, on the CPU; the later ones come from graphs."""
    sampler = Sampler(generator.to(device), Draw(3.0, schedule=schedule, precision=precision, keep=keep))
    labels = torch.arange(batch) % 5
    if not graphs:
        with torch.inference_mode():
            sampler.ready(sampler.branches(labels, range(batch))).graphs = None
    places = (range(first, first + batch) for first in (0, 100, 200))
    return torch.stack([sampler.sample(labels, indices).cpu() for indices in places])


def agree(generator: Any, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return torch.equal(drawn(generator, **one), drawn(generator, **other))


def right(day: Any) -> None:
    device = day.device
    sub_codes = small(SubCodeGenerator, sub_codes=3)
    with float32_products(tf32=False):
        for name, model, words in (
            ("power-cosine", small(), {}),
            ("softcfg", small(), {"schedule": "softcfg"}),
            ("sub-codes", sub_codes, {}),
            ("keep 7", small(), {"keep": 7}),
            ("bfloat16", small(), {"precision": "bfloat16"}),
        ):
            here = {"device": device, **words}
            day.number(f"{name}: by graph = one by one", partial(agree, model, here, {**here, "graphs": False}))
            if name != "bfloat16":  # each device rounds bfloat16 differently
                day.number(f"{name}: here = on the CPU", partial(agree, model, here, {**words, "device": "cpu"}))
        day.number("batches of 1, 5, 8 in turn", lambda: batches_in_turn(small(), device))
        day.number("capture while a loader pins memory", lambda: beside_a_loader(device))
        if has_compiler():
            day.number("compiled = plain in nine ids of ten", lambda: compiled_agrees(day, small()))
        else:
            day.skip("compiled = plain in nine ids of ten", "no compiler")
        name = "one kernel for cache and attention = attend"
        if day.cuda and find_spec("triton"):
            from alitok.sampling.decode_kernel import agrees

            for head_dim in (80, 64, 48):
                for length in (1, 4, 16):  # one token, with weights on the values, and windows
                    for dtype in (torch.float32, torch.bfloat16):
                        label = f"{name}, {head_dim}, {length} at a time, {str(dtype)[6:]}"
                        day.number(label, lambda a=(head_dim, dtype, length): agrees(device, *a))
            day.number("that kernel, batch 256 of 662M", lambda: kernel_bandwidth(device), "TB/s")
        else:
            day.skip(name, "needs CUDA and Triton")


def batches_in_turn(generator: Any, device: Any) -> bool:
    """Whether one sampler gives the same ids when batch sizes change, and the same first token in any batch."""
    sampler = Sampler(generator.to(device), Draw(3.0))
    rounds = [[sampler.sample(torch.arange(n) % 5).cpu() for n in (1, 5, 8)] for _ in range(2)]
    same = all(torch.equal(a, b) for a, b in zip(*rounds, strict=True))
    return same and torch.equal(rounds[0][2][:5, 0], rounds[0][1][:, 0])


def beside_a_loader(device: Any) -> bool:
    """Whether ids stay the same while a loader's thread pins memory during a graph's capture."""
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            data = torch.zeros(64, 1024, 64)
            for _ in DataLoader(data, batch_size=8, num_workers=1, pin_memory=device.type == "cuda"):  # type: ignore[arg-type]
                if done.is_set():
                    break

    expected = drawn(small(), device)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        return all(torch.equal(drawn(small(), device), expected) for _ in range(3))
    finally:
        done.set()
        thread.join()


def compiled_agrees(day: Any, generator: Any) -> bool:
    """Whether compiled steps draw nearly the same ids, which rounding may change; reports the share of equal ids."""
    draws = (Draw(3.0, compiled=choice) for choice in (True, False))
    found = [Sampler(generator.to(day.device), draw).sample(torch.arange(5)) for draw in draws]
    share = float((found[0] == found[1]).float().mean())
    day.say("compiled: share of equal ids", share)
    return share > 0.9


def kernel_bandwidth(device: Any) -> float:
    """TB/s of keys and values read at position 272 of 273, in one layer."""
    from alitok.sampling.decode_kernel import decode_attention

    rows, heads, room, dim = 512, 16, 273, 80
    stored = torch.randn(2, rows * heads, room, dim, device=device, dtype=torch.bfloat16)
    q, k, v = torch.randn(3, rows, heads, 1, dim, device=device, dtype=torch.bfloat16).unbind()
    position = torch.tensor([room - 1], device=device)
    return stored.nbytes / best(lambda: decode_attention(q, k, v, stored, position, None), device, 0.3) / 1e12


SMALL = "--trainer.logger null --trainer.callbacks.curves null --trainer.callbacks.speed null --model.warmup_steps 0"
GAN = [
    "--model.discriminator",
    "{class_path: alitok.losses.adversarial.BlurDiscriminator,"
    " init_args: {width: 32, stages: [32, 32], groups: 8, map_size: 4}}",
    "--model.adversarial",
    "{class_path: alitok.losses.adversarial.HingeGAN}",
]


def strategies(day: Any) -> None:
    trainer = f"{SMALL} --define.run {day.scratch / 'run'} --trainer.accelerator {'gpu' if day.cuda else 'cpu'}".split()
    trainer += ["--trainer.devices", f"[{day.device.index or 0}]" if day.cuda else "1", "--data.global_batch", "8"]
    day.number("stage 1 through its GAN phase in bf16, resumed once", lambda: stage1_resumed(trainer))
    day.number("FSDP2 on one device, with samples", lambda: fsdp(day.scratch / "run", trainer))
    if day.cuda:
        day.number("a step without waits for the device", lambda: never_waits(day))
    else:
        day.skip("a step without waits for the device", "no GPU")


def compose(part: str, words: list[str], *files: str) -> dict[str, Any]:
    folder = experiments_folder()
    return compose_run([folder / "demo" / f"{part}.yaml", *(folder / file for file in files)], words)


def stage1_resumed(trainer: list[str]) -> bool:
    from alitok.training.launch import finished, run

    phases = "{continuous: null, main: {steps: 2, lr: 1.e-3}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"
    words = [*trainer, *GAN, "--trainer.precision", "bf16-mixed", "--model.phases", phases, "--data.micro_batch", "4"]
    words += ["--data.count", "64", "--data.val_count", "8", "--trainer.val_check_interval", "3"]
    for steps in (3, 6):
        config = compose("tokenizer-stage1", [*words, "--trainer.max_steps", str(steps)])
        run("fit", config, allow_changes=True)
    return finished(config, 6)


def fsdp(run_folder: Path, trainer: list[str]) -> bool:
    """Train a generator four steps under FSDP2 on random tokens, with validations that draw samples."""
    from alitok.data.shapes import Shapes
    from alitok.data.token_shards import write_token_cache
    from alitok.training.launch import finished, run

    block = compose("tokenizer-stage1", trainer)["model"]["init_args"]["tokenizer"]
    card = save_artifact(run_folder / "stage2" / "artifact", block, build(block), {"kind": "tokenizer"})
    rows = [(i % 10, torch.randint(1024, (2, 72)).numpy()) for i in range(40)]
    names = Shapes("train").class_names
    about = {"codebook_size": 1024, "digest": card["digest"], "class_names": names, "recipe": {}}
    write_token_cache(run_folder / "tokens", rows, **about)
    words = [*trainer, "--model.phases", "{main: {steps: 4, lr: 1.e-3}}", "--trainer.val_check_interval", "2"]
    config = compose("generator", words, "strategies/fsdp.yaml")
    run("fit", config)
    root = Path(config["trainer"]["default_root_dir"])
    return finished(config, 4) and len(list((root / "pictures").glob("samples-*.png"))) == 2


class Sync(Callback):
    """Makes PyTorch warn of each wait for the device in the third step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        torch.cuda.set_sync_debug_mode("warn" if index == 2 else "default")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def never_waits(day: Any) -> bool:
    """Whether a step of stage 1 with the perceptual terms never waits for the device; reports each place that waits."""
    import lightning as L

    from alitok.profiling.bench_machine import Options
    from alitok.profiling.bench_training import Ready, training_config

    options = Options(day.machine(), "demo" if day.tiny else "imagenet256", (), None, ())
    config = training_config(options, "tokenizer-stage1", None, "bfloat16", 4)
    module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        L.Trainer(
            max_steps=4, accelerator="gpu", devices=[day.device.index or 0], precision="bf16-mixed", logger=False,
            callbacks=[Sync()], enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
        ).fit(module, datamodule=Ready(module.model, 4, 4))  # fmt: skip
    found = [f"{warning.filename}:{warning.lineno}" for warning in seen if "synchroniz" in str(warning.message)]
    for place in sorted(set(found)):
        day.say(f"{WAITS} {'/'.join(place.split('/')[-3:])}", found.count(place), "times")
    return not found

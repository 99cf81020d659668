"""The speed of a run, and its time waiting for data."""

import time
from collections import Counter
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode

from alitok.common.devices import float32_products
from alitok.common.hardware import known_gpu
from alitok.training.base import TrainingModule
from alitok.training.records import StepRecord


class Speed(Callback):
    """Logs `speed/images_per_second`, `speed/data_wait` and `speed/utilisation` every `log_every_n_steps`.

    Images are those of all processes. `data_wait` is the share of time in which the first process waits for its next
    batch. `utilisation` is the share of the device's peak at this precision. It counts the matrix products of the
    second step of each kind, including recomputed activations. It is left out if the peak is unknown, or a kind of step
    was not counted yet. The time includes checkpoints, but not validation.

    Args:
        peak_flops: peak of one device in FLOP/s; None for the makers' data sheets (`GPUS`), then Lightning's table.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.given_peak = peak_flops
        self.started = 0.0  # no fit has begun
        self.flops: dict[tuple[str, bool], int] = {}
        self.seen: set[tuple[str, bool]] = set()
        self.counter: FlopCounterMode | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peak = self.given_peak
        if self.peak is None and pl_module.device.type == "cuda":
            half, tf32 = str(trainer.precision).startswith("bf16"), cast(TrainingModule, pl_module).tf32
            gpu = known_gpu(torch.cuda.get_device_name(pl_module.device))
            if gpu is not None:  # Lightning's table misses the names of some cards
                self.peak = gpu.rate("bfloat16" if half else "tf32" if tf32 else "float32")
            else:
                with float32_products(tf32):  # Lightning reads this setting
                    self.peak = get_available_flops(pl_module.device, torch.bfloat16 if half else torch.float32)
        self.ready = time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        self.started, self.waited, self.away = time.perf_counter(), 0.0, 0.0
        self.steps: Counter[tuple[str, bool]] = Counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = cast(TrainingModule, pl_module)
        now = time.perf_counter()
        self.waited += now - max(self.ready, module.batch_ended)
        moment = module.schedule.at(trainer.global_step)
        self.kind = (moment.name, moment.discriminator)
        # Not the first step, which compiles: inside the counter compiled blocks run uncompiled.
        if self.peak is not None and self.kind in self.seen - self.flops.keys():
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        self.seen.add(self.kind)

    def _stop_counting(self) -> int:
        counter, self.counter = self.counter, None
        assert counter is not None
        counter.__exit__(None, None, None)
        return counter.get_total_flops()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.counter is not None:  # else it would count all later work of this process
            self._stop_counting()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.counter is not None:
            self.flops[self.kind] = self._stop_counting()
        record: StepRecord = outputs["record"]
        self.steps[self.kind] += 1
        module = cast(TrainingModule, pl_module)
        if not module.reports(record.step):
            return
        float(record.norm)  # waits for the device, so that the time includes its work
        seconds = time.perf_counter() - self.started - self.away
        images = self.steps.total() * trainer.datamodule.global_batch  # type: ignore[attr-defined]
        values = {"images_per_second": images / seconds, "data_wait": self.waited / seconds}
        if self.peak is not None and self.steps.keys() <= self.flops.keys():
            done = sum(self.flops[kind] * count for kind, count in self.steps.items())
            values["utilisation"] = done / seconds / self.peak
        report = {f"speed/{name}": value for name, value in values.items()}
        if skipped := trainer.datamodule.skipped:  # type: ignore[attr-defined]
            report["data/skipped_images"] = skipped
        module.report(report)
        self._begin()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.left = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.started:
            self.ready = time.perf_counter()
            self.away += self.ready - self.left

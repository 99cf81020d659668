"""Times a decoding step with each choice of kernels, to find the fastest on this processor."""

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alitok.common.draw import Draw
from alitok.common.hardware import timed
from alitok.common.kernels import VARIABLE
from alitok.models.generator import Generator
from alitok.profiling.bench_machine import Machine, Row
from alitok.sampling.generate import Sampler

CHOICES = (
    "decode=plain,linear=blocked",
    "decode=turned,linear=blocked",
    "decode=plain,linear=turned",
    "decode=turned,linear=turned",
)
STEPS, TURNS = 4, 2


def kernel_rows(generator: Generator, batch: int, precision: str, machine: Machine, label: str) -> Iterator[Row]:
    """The row `kernels-SIZE-bBATCH-PRECISION` on a CPU: milliseconds of a step half-way through a sequence.

    The value is for the kernels that this processor uses by default, or that `ALITOK_KERNELS` names; the baseline is
    the fastest of `CHOICES`. `notes`: milliseconds of each choice.
    """
    if machine.cuda:
        return
    seconds: dict[str | None, list[float]] = {words: [] for words in (None, *CHOICES)}
    for _ in range(TURNS):
        for words, times in seconds.items():
            with named(words):
                times += step_seconds(generator, batch, precision)
    medians = {words: 1000 * statistics.median(times) for words, times in seconds.items()}
    taken = medians.pop(None)
    notes: dict[str, Any] = {"step_ms": medians}
    yield Row(f"kernels-{label}-b{batch}-{precision}", taken, "ms", min(medians.values()), less=True, notes=notes)


@contextmanager
def named(words: str | None) -> Iterator[None]:
    """Set `ALITOK_KERNELS` to these words in this context; None leaves it unchanged."""
    before = os.environ.get(VARIABLE)
    if words is not None:
        os.environ[VARIABLE] = words
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


@torch.inference_mode()
def step_seconds(generator: Generator, batch: int, precision: str) -> list[float]:
    """Seconds of a few steps with guidance; a first step, which sets up, is not counted."""
    sampler = Sampler(generator, Draw(3.0, precision=precision))
    labels = torch.arange(batch) % generator.num_classes
    loop = sampler.ready(sampler.branches(labels, range(batch)))
    half = generator.num_tokens // 2
    loop.resize(-(-(half + 1) // 8) * 8)

    def step() -> None:
        loop.position.fill_(half)
        loop.advance()

    step()
    return [timed(step, loop.device) for _ in range(STEPS)]

"""Sampling speed, compared with a plain float32 loop with a growing key/value cache."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.build import build
from alitok.common.compiler import has_compiler
from alitok.common.draw import Draw
from alitok.models.generator import Generator
from alitok.profiling.bench_kernels import kernel_rows
from alitok.profiling.bench_machine import Machine, Options, Row, if_it_fits, per_second, wait
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import guidance_of
from alitok.sampling.weights import KEPT_IN_FLOAT32, PRECISION, for_inference

PLAIN_STEPS = 12  # steps of the baseline, evenly spaced over the sequence
BATCH = {"cpu": 8, "cuda": 64}
WINDOW, WINDOW_BATCHES = 8, {"cpu": (1,), "cuda": (1, 8, 32)}


def sampling(options: Options) -> Iterator[Row]:
    """Rows `sampling-SIZE-bBATCH-PRECISION[-compiled]`: images per second with guidance, tokens only.

    For the first size and batch also `softcfg-...` (SoftCFG against power-cosine guidance), `windows-...` (several
    tokens per pass) and `kernels-...` (the choice of kernels).
    """
    machine = options.machine
    for size in options.sizes:
        generator = random_generator(options.model("generator", size)["generator"], machine.device)
        agreement = agreements(generator, options.precisions)
        for batch in options.batches or (BATCH[machine.device.type],):
            few = machine.baseline_batch(batch)
            plain = per_second(few / generator.num_tokens, if_it_fits(partial(plain_step, generator, few)))
            for precision in options.precisions:
                limit, bound = step_limit(generator, batch, precision, machine)
                agree = {"equal_argmax": agreement[precision]}  # of the weights, by whole sequences: no compiled step
                for compiled in (False, True) if has_compiler() else (False,):
                    draw = Draw(3.0, precision=precision, compiled=compiled)
                    drawn = if_it_fits(partial(draw_seconds, generator, batch, draw, machine))
                    seconds, by_quarter = drawn or (None, None)
                    yield Row(
                        f"sampling-{options.label(size)}-b{batch}-{precision}" + "-compiled" * compiled,
                        per_second(batch, seconds),
                        "images/s",
                        plain,
                        batch / (generator.num_tokens * limit),
                        bound,
                        notes={
                            "step_ms_by_quarter": by_quarter,
                            "baseline_batch": few,
                            **({} if compiled else agree),
                        },
                    )
            if (size, batch) == (options.sizes[0], (options.batches or (batch,))[0]):
                yield softcfg_row(generator, batch, options.precisions[-1], machine, options.label(size))
                yield from window_rows(generator, options, options.label(size))
                for precision in options.precisions:
                    yield from kernel_rows(generator, batch, precision, machine, options.label(size))


def softcfg_row(generator: Generator, batch: int, precision: str, machine: Machine, label: str) -> Row:
    """The cost of SoftCFG: images per second with it, and without as the baseline; each the better of two runs."""
    seconds: dict[str, float | None] = {}
    for name in ("softcfg", "power-cosine") * 2:
        draw = Draw(3.0, schedule=name, precision=precision)
        drawn = if_it_fits(partial(draw_seconds, generator, batch, draw, machine))
        seconds[name] = None if drawn is None else min(drawn[0], seconds.get(name) or drawn[0])
    soft, plain = (per_second(batch, best) for best in seconds.values())
    return Row(f"softcfg-{label}-b{batch}-{precision}", soft, "images/s", plain)


def window_rows(generator: Generator, options: Options, label: str) -> Iterator[Row]:
    """Rows `windows-SIZE-bBATCH`: images per second with windows of `WINDOW` in float32; baseline: one token per pass.

    The weights are random, so drafts are right only by chance, and the row shows the cost of a pass. `notes`: passes
    per token, and the share of right drafts.
    """
    machine = options.machine
    for batch in options.batches or WINDOW_BATCHES[machine.device.type]:
        labels = torch.arange(batch) % generator.num_classes
        seconds: dict[int, float | None] = {}
        notes: dict[str, Any] = {"window": WINDOW}
        for window in (1, WINDOW) * 2:
            sampler = Sampler(generator, Draw(3.0, window=window))
            draws = 2 if machine.cuda else 1  # on a GPU the first one captures graphs and is not timed

            def draw(sampler: Sampler = sampler, labels: Tensor = labels, draws: int = draws) -> float:
                for _ in range(draws - 1):
                    sampler.sample(labels)
                start = wait(machine.device)
                sampler.sample(labels)
                return wait(machine.device) - start

            drawn = if_it_fits(draw)
            seconds[window] = None if drawn is None else min(drawn, seconds.get(window) or drawn)
            if (loop := sampler.windows) is not None:
                notes["passes_per_token"] = loop.passes / (draws * generator.num_tokens)
                notes["right_drafts"] = float(loop.accepted.sum() / loop.tried.sum().clamp(min=1))
        plain, windows = (per_second(batch, seconds[window]) for window in (1, WINDOW))
        yield Row(f"windows-{label}-b{batch}-float32", windows, "images/s", plain, notes=notes)


def random_generator(block: dict[str, Any], device: torch.device) -> Generator:
    """A generator with a random output head, so that its logits are not all equal."""
    torch.manual_seed(0)
    generator: Generator = build(block)
    nn.init.normal_(generator.output.weight, std=generator.output.in_features**-0.5)
    return generator.eval().to(device)


def draw_seconds(generator: Generator, batch: int, draw: Draw, machine: Machine) -> tuple[float, list[float]]:
    """Seconds to draw a batch, and milliseconds per step in each quarter of the sequence.

    Compilation, and on a GPU a first batch that captures graphs, are not timed.
    """
    sampler = Sampler(generator, draw)
    labels = torch.arange(batch) % generator.num_classes
    if draw.compiled:
        first_steps(sampler, labels)
    if machine.cuda:
        sampler.sample(labels)
    steps = generator.num_tokens
    edges = {quarter * steps // 4 for quarter in (1, 2, 3)}
    marks = []

    def on_step(step: int) -> None:
        if step + 1 in edges:
            marks.append((step + 1, wait(machine.device)))

    start = wait(machine.device)
    sampler.sample(labels, on_step=on_step)
    end = wait(machine.device)
    points = [(0, start), *marks, (steps, end)]
    by_quarter = [
        1000 * (after - before) / (last - first) for (first, before), (last, after) in pairwise(points) if last > first
    ]
    return end - start, by_quarter


@torch.inference_mode()
def first_steps(sampler: Sampler, labels: Tensor) -> None:
    """Run a step at two lengths of the cache, after which the compiled code accepts any length."""
    loop = sampler.ready(sampler.branches(labels, range(len(labels))))
    for length in (loop.generator.num_tokens // 2, loop.generator.num_tokens):
        loop.resize(length)
        loop.advance()


class GrowingCache:
    """The plain cache: each step concatenates its keys and values to the earlier ones."""

    def __init__(self, layers: int, shape: Sequence[int], device: torch.device) -> None:
        self.keys = [torch.randn(*shape, device=device) for _ in range(layers)]
        self.values = [torch.randn(*shape, device=device) for _ in range(layers)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
        self.values[layer] = torch.cat([self.values[layer], value], dim=2)
        return F.scaled_dot_product_attention(query, self.keys[layer], self.values[layer])


@torch.no_grad()
def plain_step(generator: Generator, batch: int) -> float:
    """Mean seconds of a step of the plain loop, over steps spread along the sequence."""
    device, steps, layers = generator.rope.device, generator.num_tokens, len(generator.blocks)
    x = generator.embed_labels(torch.arange(2 * batch, device=device) % generator.num_classes)
    rule, total, taken = guidance_of(Draw(3.0)), 0.0, 0
    for position in range(0, steps, max(1, steps // PLAIN_STEPS)):
        cache = GrowingCache(layers, (2 * batch, generator.heads, position, generator.head_dim), device)

        def step(cache: GrowingCache = cache, position: int = position) -> None:
            at = torch.tensor([position], device=device)
            logits = rule.combine(generator.output(generator.step(x, at, cache)[:, 0]).chunk(2), at, steps)
            tokens = torch.multinomial(logits.softmax(-1), 1)[:, 0].tolist()
            generator.embed_tokens(torch.tensor(tokens * 2, device=device))

        if not taken:
            step()  # sets up
        start = wait(device)
        step()
        total += wait(device) - start
        taken += 1
    return total / taken


def step_limit(generator: Generator, batch: int, precision: str, machine: Machine) -> tuple[float, str]:
    """The least seconds of a step with guidance, and what bounds it.

    The longer of two times: reading the weights of all linear layers and (on average) half of the cache once, and
    computing the products of layers and attention.
    """
    rows, dtype = 2 * batch, PRECISION[precision]
    moved = flop_seconds = 0.0
    for name, layer in generator.named_modules():
        if isinstance(layer, nn.Linear):
            single = name.split(".")[0] in KEPT_IN_FLOAT32
            moved += layer.weight.numel() * (4 if single else dtype.itemsize)
            flop_seconds += 2 * rows * layer.weight.numel() / machine.peak("float32" if single else precision)
    cache = rows * len(generator.blocks) * generator.heads * generator.head_dim * (generator.num_tokens + 1)
    moved += cache * dtype.itemsize  # keys and values, each half full on average
    flop_seconds += 2 * cache / machine.peak(precision)
    memory = moved / machine.bandwidth
    return max(memory, flop_seconds), "memory bandwidth" if memory > flop_seconds else f"{precision} products"


@torch.no_grad()
def agreements(generator: Generator, precisions: Sequence[str]) -> dict[str, float]:
    """By precision, the share of positions of a random sequence whose likeliest token is that of the float32 model."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(generator.codebook_size, (1, *generator.id_shape), generator=random).to(generator.rope.device)
    labels = torch.zeros(1, dtype=torch.int64, device=ids.device)
    likeliest = generator(ids, labels).argmax(-1)
    return {
        precision: float((for_inference(generator, precision)(ids, labels).argmax(-1) == likeliest).float().mean())
        for precision in precisions
    }

"""Draws several tokens per pass, with the same ids as drawing one token at a time.

A token is a function of its logits and of random numbers that belong to its image and position. So each pass reads the
last token and L - 1 drafts, and draws all L places. The first draw is right, and so is every later one whose inputs
are right. The other draws are the drafts of the next pass (predictive sampling: Wiggers & Hoogeboom 2020, arXiv
2002.09928).

In float32 on a CPU with AVX2 the ids are exactly those of one token per pass: linear layers round every row alike, and
attention takes one query at a time. Elsewhere products of L rows round differently from those of one row: in bfloat16,
on a GPU, with compiled blocks, with the kernel `decode=fused`, and if a hidden width is no multiple of 32. There a draw
at the edge between two tokens now and then takes the other one, and the tokens after it change too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alitok.common.devices import widest_float
from alitok.common.errors import BadInput
from alitok.models.generator import Generator, in_order, place_index
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.graphs import Graphs
from alitok.sampling.guidance import Branch, Guidance
from alitok.sampling.loop import check_other, growth, kernel_for

# Passes between two checks of the rows' progress; each check waits for the device.
LOOK = {"cpu": 1, "cuda": 8}


@dataclass
class Job:
    """An image to be drawn.

    Attributes:
        name: the caller's number for it.
        branches: branches of guidance, one row each.
        noise: (1, N, ...) random numbers that decide its draws.
    """

    name: int
    branches: list[Branch]
    noise: Tensor


class WindowLane:
    """`loop.Lane` for windows: the branches that one network computes, B rows of the first branch, then of the next."""

    def __init__(
        self, generator: Generator, branches: Sequence[Branch], rows: int, dtype: torch.dtype, window: int
    ) -> None:
        self.generator, self.count, self.rows = generator, len(branches), rows
        device, width = generator.embeddings.weight.device, generator.embeddings.embedding_dim
        layers, heads, total = len(generator.blocks), generator.heads, generator.num_tokens
        kernel = kernel_for(generator, dtype, window)
        self.cache = KeyValueCache(
            layers, self.count * rows, heads, total, generator.head_dim, device, dtype, kernel=kernel
        )
        self.label = torch.zeros(self.count * rows, 1, width, device=device)
        length = max((one.condition.shape[1] for one in branches if one.condition is not None), default=0)
        self.condition = torch.zeros(self.count * rows, length, width, device=device) if length else None

    def put(self, row: int, branches: Sequence[Branch]) -> None:
        """Put an image into a row and clear the earlier one's cache: masked entries still count as 0 x NaN."""
        for index, branch in enumerate(branches):
            place = index * self.rows + row
            for stored in (self.cache.keys, self.cache.values):
                stored.unflatten(1, (-1, self.cache.heads))[:, place] = 0
            self.label[place] = self.generator.embed_labels(branch.labels)[0]
            if self.condition is not None:
                self.condition[place] = 0.0 if branch.condition is None else branch.condition[0]

    def hidden(self, before: Tensor, places: Tensor) -> Tensor:
        """Hidden states (rows * L, width) of every branch at the places (B, L), whose preceding tokens are `before`."""
        repeat = (self.count, *[1] * (before.ndim - 1))
        tokens, places = self.generator.embed_tokens(before.repeat(repeat)), places.repeat(self.count, 1)
        x = torch.where(places[..., None] == 0, self.label, tokens)
        if self.condition is not None:
            one = self.condition.shape[1] == 1
            x = x + (self.condition if one else self.condition.gather(1, places[..., None].expand_as(x)))
        self.cache.start_step(places)
        return self.generator.step(x, places, self.cache).flatten(0, 1)


class WindowLoop:
    """Draws images in rows that advance independently; a finished row takes the next image.

    Args:
        generator: the result of `for_inference`.
        rule: guidance.
        branches: branches of any image, with prepared generators.
        rows: B, number of images drawn together.
        window: L, number of places drawn per pass.
        temperature: logits are divided by it.
        dtype: dtype of the cache.
        keep: draw only this many first tokens.
        noise: dtype of the numbers that decide the draws.

    Attributes:
        passes: number of passes of the networks, each over all rows.
        tried, accepted: (N,) number of drafts per place that were tested after right inputs, and that were right.

    Raises:
        BadInput: guidance that needs the final tokens before a place instead of drafts.
    """

    def __init__(
        self,
        generator: Generator,
        rule: Guidance,
        branches: Sequence[Branch],
        rows: int,
        window: int,
        temperature: float,
        dtype: torch.dtype,
        keep: int | None = None,
        noise: torch.dtype | None = None,
    ) -> None:
        if any(branch.value_weights is not None or branch.sources is not None for branch in branches):
            raise BadInput(
                f"{type(rule).__name__} needs the final tokens before a place, and a window reads drafts; take a window"
                " of 1."
            )
        self.generator, self.rule, self.temperature = generator, rule, temperature
        self.networks = [branch.generator or generator for branch in branches]
        for network in dict.fromkeys(self.networks):
            if network is not generator:
                check_other(network, generator)
        self.lanes = {
            network: WindowLane(network, self._of(network, branches), rows, dtype, window)
            for network in dict.fromkeys([generator, *self.networks])
        }
        device = self.device = generator.embeddings.weight.device
        self.rows, self.steps = rows, keep or generator.num_tokens
        self.window = min(window, self.steps)
        total = generator.num_tokens
        shape = (rows, total, *generator.output.noise_shape)
        self.noise = torch.zeros(shape, dtype=noise or widest_float(device), device=device)
        self.ids = torch.zeros(rows, *generator.id_shape, dtype=torch.int64, device=device)
        self.next = torch.full((rows,), self.steps, device=device)  # the place that each row draws next
        self.reached = torch.zeros(rows, dtype=torch.int64, device=device)  # how many places have been drawn at all
        self.offsets = torch.arange(self.window, device=device)
        self.passes = 0
        self.tried, self.accepted = (torch.zeros(total, dtype=torch.int64, device=device) for _ in range(2))
        self.graphs = Graphs(device) if device.type == "cuda" else None

    def _of(self, network: Generator, branches: Sequence[Branch]) -> list[Branch]:
        return [branch for branch, own in zip(branches, self.networks, strict=True) if own is network]

    def run(self, jobs: Iterable[Job], on_step: Callable[[int], None] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Draw all images.

        Args:
            on_step: called with a running number, once per B drawn tokens.

        Yields:
            name and ids (N,) or (N, S) of each image, or its first `keep`, in the order of finishing.
        """
        queue, names = iter(jobs), [-1] * self.rows
        look, told = LOOK.get(self.device.type, 1), 0
        self.next.fill_(self.steps)
        finished = 0
        while True:
            places = self.next.tolist()
            for row, place in enumerate(places):
                if place < self.steps:
                    continue
                if names[row] >= 0:
                    yield names[row], self.ids[row, : self.steps].clone()
                    finished += 1
                    names[row] = -1
                job = next(queue, None)
                if job is not None:
                    self._put(row, job)
                    names[row], places[row] = job.name, 0
            drawn = (
                finished * self.steps + sum(p for p, name in zip(places, names, strict=True) if name >= 0)
            ) // self.rows
            while on_step is not None and told < drawn:
                on_step(told)
                told += 1
            if all(name < 0 for name in names):
                return
            self._make_room(
                max(place for place, name in zip(places, names, strict=True) if name >= 0) + look * self.window
            )
            for _ in range(look):
                self.passes += 1
                if self.graphs is None:
                    self.advance()
                else:
                    self.graphs.run(0, self.advance)

    def _make_room(self, length: int) -> None:
        """Grow the cache with the farthest row: on a CPU each pass reads its whole length."""
        total, part = self.generator.num_tokens, growth(self.generator, self.device)
        wanted = self.steps if self.device.type == "cuda" else min(total, -(-length // part) * part)
        for lane in self.lanes.values():
            if lane.cache.length < wanted:
                lane.cache.resize(wanted)

    def _put(self, row: int, job: Job) -> None:
        for network, lane in self.lanes.items():
            lane.put(row, self._of(network, job.branches))
        self.noise[row] = job.noise[0].to(self.noise.dtype)
        self.ids[row], self.next[row], self.reached[row] = 0, 0, 0

    def advance(self) -> None:
        """Run one pass over all rows. Nothing here waits for the device. Finished rows repeat their start."""
        unfinished = self.next < self.steps
        start = torch.where(unfinished, self.next.clamp(max=self.steps - self.window), 0)
        places = start[:, None] + self.offsets  # (B, L)
        known, fresh = places < self.next[:, None], places >= self.reached[:, None]
        # The first draft of a place is the token above it.
        above = (places - self.generator.columns).clamp(min=0)
        above = torch.minimum(above, (self.reached[:, None] - 1).clamp(min=0))
        drafts = _where(fresh, in_order(self.ids, above), in_order(self.ids, places))
        before = torch.cat([in_order(self.ids, (start[:, None] - 1).clamp(min=0)), drafts[:, :-1]], dim=1)

        hidden = {network: lane.hidden(before, places) for network, lane in self.lanes.items()}
        own = hidden.pop(self.generator)
        others = {network: network.output(state).float() for network, state in hidden.items()}
        flat = places.flatten()

        def guide(logits: Tensor) -> Tensor:
            rows = {self.generator: logits, **others}
            parts = {network: iter(rows[network].split(len(flat))) for network in rows}
            return self.rule.combine([next(parts[own]) for own in self.networks], flat, self.generator.num_tokens)

        noise = in_order(self.noise, places).flatten(0, 1)
        drawn = self.generator.output.draw(own, noise, guide, self.temperature)
        drawn = _where(known, drafts, drawn.unflatten(0, places.shape))
        right = (drawn == drafts).view(*places.shape, -1).all(2)  # (B, L)
        right[:, -1] = False  # the last draw was no input of this pass
        leading = right.int().cumprod(1)  # places whose draw the next place has read
        new = start + leading.sum(1) + 1

        tested = ~known & (torch.cat([torch.ones_like(leading[:, :1]), leading[:, :-1]], 1) > 0)
        tested[:, -1] = False
        self.tried.scatter_add_(0, flat, tested.flatten().long())
        self.accepted.scatter_add_(0, flat, (tested & right).flatten().long())
        self.ids.scatter_(1, place_index(self.ids, places), drawn)
        self.next.copy_(torch.where(unfinished, new, self.next))
        self.reached.copy_(torch.maximum(self.reached, start + self.window))


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` if the mask (B, L) is true, else `no`, both (B, L) or (B, L, S)."""
    return torch.where(mask.view(*mask.shape, *[1] * (yes.ndim - 2)), yes, no)

"""The loop that draws the tokens of one batch, position after position."""

import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from alitok.common.devices import widest_float
from alitok.common.errors import BadInput
from alitok.common.kernels import decode_kernel
from alitok.models.generator import Generator
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.compiled import CompiledBlock
from alitok.sampling.graphs import Graphs
from alitok.sampling.guidance import Branch, Guidance

# How often the cache grows per sequence. Fewer growth steps read more empty slots; more steps copy the cache more often
# and, on a GPU, need one CUDA graph each.
LAYOUTS = {"cpu": 16, "cuda": 8}


def growth(generator: Generator, device: torch.device) -> int:
    """The number of positions by which a cache for the generator grows.

    A draw must not depend on the cache's length. But a CPU's softmax rounds sums over fewer than 16 positions
    differently, and torch has other products of matrices for fewer than 400 multiplications.
    """
    part = -(-generator.num_tokens // (LAYOUTS.get(device.type, LAYOUTS["cpu"]) * 8)) * 8
    return max(part, -(-400 // (16 * generator.head_dim)) * 16)


class Lane:
    """The branches that one network computes: rows of one batch over one cache.

    Args:
        generator: the result of `for_inference`.
        branches: branches of the first batch; later batches must have the same number and kind.
        dtype: dtype of the cache.
    """

    def __init__(self, generator: Generator, branches: Sequence[Branch], dtype: torch.dtype) -> None:
        self.generator = generator
        self.batch = len(branches[0].labels)
        rows, width = len(branches) * self.batch, generator.embeddings.embedding_dim
        device, steps = generator.embeddings.weight.device, generator.num_tokens
        self.value_weights = [branch.value_weights for branch in branches]
        weighted = any(weigh is not None for weigh in self.value_weights)
        layers, heads = len(generator.blocks), generator.heads
        kernel = kernel_for(generator, dtype)
        self.cache = KeyValueCache(layers, rows, heads, steps, generator.head_dim, device, dtype, weighted, kernel)
        self.x = torch.zeros(rows, 1, width, device=device)
        conditions = [branch.condition for branch in branches if branch.condition is not None]
        length = max((part.shape[1] for part in conditions), default=0)
        self.condition = torch.zeros(rows, length, width, device=device) if conditions else None
        if any(branch.sources is not None for branch in branches):
            self.cache.sources = torch.arange(steps, device=device).repeat(rows, 1)

    def start(self, branches: Sequence[Branch]) -> None:
        """Take the labels, conditions and sources of a new batch."""
        self.x.copy_(self.generator.embed_labels(torch.cat([branch.labels for branch in branches])))
        self.value_weights = [branch.value_weights for branch in branches]
        for index, branch in enumerate(branches):
            rows = slice(index * self.batch, (index + 1) * self.batch)
            if self.condition is not None:
                self.condition[rows] = 0.0 if branch.condition is None else branch.condition
            if self.cache.sources is not None and branch.sources is not None:
                self.cache.sources[rows] = branch.sources

    def hidden(self, position: Tensor, confidence: Tensor) -> Tensor:
        """The hidden state (rows, width) at the position (1,)."""
        self.cache.start_step(position)
        if self.cache.value_weights is not None:
            for index, weigh in enumerate(self.value_weights):
                if weigh is not None:
                    rows = slice(index * self.batch, (index + 1) * self.batch)
                    self.cache.value_weights[rows, 0, 1:] = weigh(confidence)[:, :-1]
        x = self.x
        if self.condition is not None:
            x = x + (self.condition if self.condition.shape[1] == 1 else self.condition.index_select(1, position))
        return self.generator.step(x, position, self.cache)[:, 0]

    def feed(self, token: Tensor) -> None:
        """Make the token (B, 1) or (B, 1, S) the next input of every branch."""
        repeats = (len(self.value_weights), *[1] * (token.ndim - 1))
        self.x.copy_(self.generator.embed_tokens(token.repeat(repeats)))


class TokenLoop:
    """Draws one batch of sequences; its buffers are allocated once and serve many batches.

    On a GPU a step is captured as a CUDA graph (one for each layout of the cache) that contains the networks, guidance
    and drawing.

    Args:
        generator: the result of `for_inference`.
        rule: guidance: it names the branches of an image (e.g. its label and "no class") and combines their logits.
        branches: branches of the first batch, with prepared generators.
        temperature: logits are divided by it.
        dtype: dtype of the cache.
        forced: tokens may be given.
        noise: dtype of the numbers that decide the draws.

    Raises:
        BadInput: a branch of another network that does not draw the same tokens, or one whose head has no logits; or a
            rule that needs the tokens' probabilities, and a head that does not give them.
    """

    def __init__(
        self,
        generator: Generator,
        rule: Guidance,
        branches: Sequence[Branch],
        temperature: float,
        dtype: torch.dtype,
        forced: bool = False,
        noise: torch.dtype | None = None,
    ) -> None:
        self.generator, self.rule, self.temperature, self.forced = generator, rule, temperature, forced
        self.networks = [branch.generator or generator for branch in branches]
        others = [network for network in dict.fromkeys(self.networks) if network is not generator]
        for network in others:
            check_other(network, generator)
        if generator not in self.networks:
            raise BadInput(f"{type(rule).__name__} has no branch of the generator that is sampled.")
        self.lanes = {network: Lane(network, self._of(network, branches), dtype) for network in (generator, *others)}
        device = self.device = generator.embeddings.weight.device
        self.batch, steps = len(branches[0].labels), generator.num_tokens
        self.confident = any(branch.value_weights for branch in branches)
        if self.confident and not generator.output.draws_once:
            raise BadInput(
                f"{type(rule).__name__} weighs tokens by their probability, which"
                f" {type(generator.output).__name__} does not give: name another schedule."
            )
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        noise = noise or widest_float(device)
        self.noise = torch.zeros(self.batch, steps, *generator.output.noise_shape, dtype=noise, device=device)
        self.confidence = torch.zeros(self.batch, steps, device=device)
        self.ids = torch.zeros(self.batch, *generator.id_shape, dtype=torch.int64, device=device)
        self.given = torch.zeros_like(self.ids) if forced else None
        self.given_mask = torch.zeros(self.batch, steps, dtype=torch.bool, device=device)
        self.graphs = Graphs(device) if device.type == "cuda" else None

    def _of(self, network: Generator, branches: Sequence[Branch]) -> list[Branch]:
        return [branch for branch, own in zip(branches, self.networks, strict=True) if own is network]

    @property
    def cache(self) -> KeyValueCache:
        """The cache of the generator that is sampled."""
        return self.lanes[self.generator].cache

    def resize(self, length: int) -> None:
        """Make room for `length` positions in every cache."""
        for lane in self.lanes.values():
            lane.cache.resize(length)

    def run(
        self,
        branches: Sequence[Branch],
        noise: Tensor,
        on_step: Callable[[int], None] | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Draw ids (B, N), or the first `keep`; the random numbers `noise` (B, N, ...) decide the draws."""
        for network, lane in self.lanes.items():
            lane.start(self._of(network, branches))
        self.noise.copy_(noise.to(self.noise.dtype))  # on the CPU: the device may lack float64
        self.position.zero_()
        self.confidence.zero_()
        steps = self.generator.num_tokens
        filled = all(lane.cache.reads_filled for lane in self.lanes.values())
        room = steps if filled else growth(self.generator, self.device)
        for step in range(keep or steps):
            if step % room == 0 and not (filled and self.cache.length == steps):
                self.resize(min(step + room, steps))
            if self.graphs is None:
                self.advance()
            else:
                self.graphs.run(self.cache.length, self.advance)
            if on_step is not None:
                on_step(step)
        return self.ids[:, :keep].clone()

    def advance(self) -> None:
        """Draw the token at `self.position` and advance. Nothing here waits for the device."""
        hidden = {network: lane.hidden(self.position, self.confidence) for network, lane in self.lanes.items()}
        own = hidden.pop(self.generator)
        others = {network: network.output(state).float() for network, state in hidden.items()}

        def guide(logits: Tensor) -> Tensor:
            """Logits (rows, ...) of the generator's own branches -> (B, ...) after guidance at this position."""
            rows = {self.generator: logits, **others}
            parts = {network: iter(rows[network].split(self.batch)) for network in rows}
            branches = [next(parts[network]) for network in self.networks]
            if self.confident:
                confidence = branches[0].softmax(-1).amax(-1).view(self.batch, -1).prod(1, keepdim=True)
                before = self.confidence.index_select(1, self.position)
                self.confidence.index_copy_(1, self.position, before * confidence)  # a head may draw sub-codes in turn
            return self.rule.combine(branches, self.position, self.generator.num_tokens)

        noise = self.noise.index_select(1, self.position)[:, 0]
        if self.confident:
            self.confidence.index_fill_(1, self.position, 1.0)
        token = self.generator.output.draw(own, noise, guide, self.temperature)[:, None]
        if self.given is not None:
            mask = self.given_mask.index_select(1, self.position).view(-1, *[1] * (token.ndim - 1))
            token = torch.where(mask, self.given.index_select(1, self.position), token)
        self.ids.index_copy_(1, self.position, token)
        for lane in self.lanes.values():
            lane.feed(token)
        self.position += 1


def kernel_for(generator: Generator, dtype: torch.dtype, length: int = 1) -> str:
    """The kernel of a decoding step of `length` tokens. Compiled blocks use Triton's, or attention of their own."""
    device = generator.embeddings.weight.device
    kernel = decode_kernel(device)
    if kernel != "triton":
        return "plain" if any(isinstance(block, CompiledBlock) for block in generator.blocks) else kernel
    works = device.type != "cuda" or works_on(device, generator.head_dim, dtype, length)
    return kernel if works else "plain"


@cache
def works_on(device: torch.device, head_dim: int, dtype: torch.dtype, length: int) -> bool:
    """Whether Triton's kernel agrees with the plain products on this GPU; warns once if not."""
    from alitok.sampling.decode_kernel import agrees

    try:
        if right := agrees(device, head_dim, dtype, length, room=max(70, 2 * length)):
            return right
        reason = "its numbers differ from the plain products'"
    except Exception as error:  # the compiler or the driver may raise anything: the plain products take over
        reason = f"{type(error).__name__}: {error}"
    print(f"alitok: the Triton kernel of decoding is not used: {reason[:200]}", file=sys.stderr)
    return False


def check_other(network: Generator, generator: Generator) -> None:
    """Raise BadInput if a branch's own network does not fit the generator that is sampled."""
    if (network.id_shape, network.codebook_size) != (generator.id_shape, generator.codebook_size):
        raise BadInput(
            f"Guidance takes a branch from a generator of {network.id_shape} ids of {network.codebook_size} codes; the"
            f" one that is sampled has {generator.id_shape} of {generator.codebook_size}. Give one of the same tokens."
        )
    if network.causal != generator.causal:
        raise BadInput(
            f"Guidance takes a branch from a {type(network).__name__} for a {type(generator).__name__}: one is drawn"
            " token by token, the other is not. Give two of one kind."
        )
    if generator.causal and not (network.output.has_logits and generator.output.has_logits):
        raise BadInput("Guidance takes a branch from another generator: the heads of both must have logits.")

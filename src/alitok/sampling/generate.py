"""The loop that draws tokens."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from alitok.common.devices import widest_float
from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.generator import Generator
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.compiled import CompiledBlock
from alitok.sampling.graphs import Graphs
from alitok.sampling.guidance import DEFAULT_SCHEDULE, Guidance, make_guidance
from alitok.sampling.weights import PRECISION, Precision, for_inference

# Layouts of the cache in the course of a sequence: each reads up to 1 / LAYOUTS of the sequence in vain; to move to the
# next costs a copy of the cache and, on a GPU, a CUDA graph of its own.
LAYOUTS = {"cpu": 16, "cuda": 8}


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws from softmax(logits) by inverting its cumulative distribution.

    Args:
        logits: (B, V), or (B, S, V).
        uniform: (B,) or (B, S) in [0, 1): one random number an image and token, or sub-code, so that an image's stream
            is N or N x S numbers long.

    Returns:
        (B,) or (B, S) int64.
    """
    cumulative = logits.to(widest_float(logits.device)).softmax(-1).cumsum(-1)
    target = uniform.to(cumulative)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)


def image_uniforms(seed: int, indices: Sequence[int], *shape: int) -> Tensor:
    """(B, N) or (B, N, S) float64 uniform numbers, row b a function of the seed and the image's index alone."""
    return torch.stack(
        [torch.rand(shape, dtype=torch.float64, generator=stream(seed, "image", index)) for index in indices]
    )


class Decoding:
    """One batch of sequences while they are drawn: every buffer a step needs, allocated once and used for many batches.

    Where there is guidance, the conditional and unconditional halves are rows of one batch. On a GPU a step is captured
    as a CUDA graph (one for each layout of the cache) that contains the model, guidance and drawing.

    Args:
        generator: as `for_inference` made it.
        batch: B, sequences that are drawn.
        rule, temperature: as `Sampler.draw`; None = no guidance.
        dtype: of the cache.
    """

    def __init__(
        self,
        generator: Generator,
        batch: int,
        rule: Guidance | None,
        temperature: float,
        dtype: torch.dtype,
    ) -> None:
        self.generator, self.batch, self.rule, self.temperature = generator, batch, rule, temperature
        device = self.device = generator.embeddings.weight.device
        rows, steps = batch if rule is None else 2 * batch, generator.num_tokens
        self.value_weights = getattr(rule, "value_weights", None)
        self.cache = KeyValueCache(
            len(generator.blocks),
            rows,
            generator.heads,
            steps,
            generator.head_dim,
            device,
            dtype,
            weighted=self.value_weights is not None,
        )
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(batch, *generator.id_shape, dtype=widest_float(device), device=device)
        self.confidence = torch.zeros(batch, steps, device=device)
        self.ids = torch.zeros(batch, *generator.id_shape, dtype=torch.int64, device=device)
        self.x = torch.zeros(rows, 1, generator.embeddings.embedding_dim, device=device)
        self.graphs = Graphs(device) if device.type == "cuda" else None

    def run(
        self, labels: Tensor, uniforms: Tensor, on_step: Callable[[int], None] | None = None, keep: int | None = None
    ) -> Tensor:
        """ids (B, N) of the labels (B,), or the first `keep` of them; `uniforms`, of their shape, decide the draws."""
        labels = labels.to(self.device)
        if self.rule is not None:
            labels = torch.cat([labels, torch.full_like(labels, self.generator.num_classes)])
        self.x.copy_(self.generator.embed_labels(labels))
        self.uniforms.copy_(uniforms.to(self.uniforms.dtype))  # on the CPU: the device may lack float64
        self.position.zero_()
        self.confidence.zero_()
        steps = self.generator.num_tokens
        room = -(-steps // (LAYOUTS.get(self.device.type, LAYOUTS["cpu"]) * 8)) * 8
        for step in range(keep or steps):
            if step % room == 0:
                self.cache.resize(min(step + room, steps))
            if self.graphs is None:
                self.advance()
            else:
                self.graphs.run(self.cache.length, self.advance)
            if on_step is not None:
                on_step(step)
        return self.ids[:, :keep].clone()

    def advance(self) -> None:
        """Draws the token at `self.position` and moves on, all on the device: nothing here waits for it."""
        self.cache.start_step(self.position)
        if self.value_weights is not None and self.cache.value_weights is not None:
            self.cache.value_weights[self.batch :, 0, 1:] = self.value_weights(self.confidence)[:, :-1]
        logits = self.generator.step(self.x, self.position, self.cache).float()
        if self.rule is not None:
            conditional, unconditional = logits.chunk(2)
            logits = self.rule(conditional, unconditional, self.position, self.generator.num_tokens)
            if self.value_weights is not None:
                confidence = conditional.softmax(-1).amax(-1).view(self.batch, -1)
                self.confidence.index_copy_(1, self.position, confidence.prod(1, keepdim=True))  # over sub-codes
        uniform = self.uniforms.index_select(1, self.position)[:, 0]
        token = draw(logits / self.temperature, uniform)[:, None]
        self.ids.index_copy_(1, self.position, token)
        self.x.copy_(self.generator.embed_tokens(token if self.rule is None else torch.cat([token, token])))
        self.position += 1


class Sampler:
    """Draws token ids from one generator, batch after batch, with its weights and buffers made ready once.

    Args:
        generator: a copy of its weights is kept, as they are now.
        precision: of the weights of linear layers (but for the output head) and of the cache.
        compiled: blocks are compiled at the first steps, which takes seconds and rounds differently.

    Raises:
        BadInput: an unknown precision, or no compiler.
    """

    def __init__(self, generator: Generator, precision: Precision = "float32", compiled: bool = False) -> None:
        self.generator = for_inference(generator, precision)
        if compiled:
            self.generator.blocks = nn.ModuleList(map(CompiledBlock, self.generator.blocks))
        self.dtype = PRECISION[precision]
        self.decoding: Decoding | None = None

    @torch.inference_mode()
    def draw(
        self,
        labels: Tensor,
        rule: Guidance | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        on_step: Callable[[int], None] | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """ids (B, N) or (B, N, S) int64; arguments and errors as `generate`."""
        if not temperature > 0:
            raise BadInput(f"temperature must be above 0, not {temperature}.")
        classes = self.generator.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise BadInput(f"labels must lie in 0..{classes} ({classes} = no class).")
        check_keep(self.generator, keep)
        if not len(labels):
            return torch.empty(0, *self.generator.id_shape, dtype=torch.int64)[:, :keep]
        wanted = (len(labels), rule, temperature)
        if self.decoding is None or (self.decoding.batch, self.decoding.rule, self.decoding.temperature) != wanted:
            self.decoding = None  # the old buffers go before the new ones come
            self.decoding = Decoding(self.generator, *wanted, self.dtype)
        indices = range(len(labels)) if indices is None else indices
        return self.decoding.run(labels, image_uniforms(seed, indices, *self.generator.id_shape), on_step, keep)


def generate(
    generator: Generator,
    labels: Tensor,
    guidance: float | Guidance | None = None,
    power: float | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    on_step: Callable[[int], None] | None = None,
    schedule: str | None = None,
    precision: Precision = "float32",
    keep: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Draws token ids.

    Args:
        generator: in eval mode.
        labels: (B,) int64 in [0, C].
        guidance: scale, 0 for none, or a guidance rule; None for what the generator's card recommends (no guidance
            where there is no card).
        power: of power-cosine guidance; None for the card's (1 where there is none).
        temperature: logits are divided by it.
        seed: with `indices` it decides each image's random numbers.
        indices: of the images in the whole set, default 0..B-1: image i is the same in any batch on a CPU. On a GPU
            another batch size rounds otherwise, so that now and then another token is drawn.
        on_step: called with the step's number after each step.
        schedule: how the scale depends on the step, by name (`SCHEDULES`); None for the card's, else power-cosine.
        precision: of the weights of the linear layers.
        keep: stop after so many tokens, which are the first of the whole sequence; None for all.
        compiled: as `Sampler`.

    Returns:
        ids (B, N) int64, or (B, keep); with a last axis of S where a token has sub-codes.

    Raises:
        BadInput: a label outside [0, C], a temperature or power that is not positive, an unknown schedule or precision,
            more tokens to keep than there are, no compiler.
    """
    rule = choose_guidance(generator, guidance, power, schedule)
    return Sampler(generator, precision, compiled).draw(labels, rule, temperature, seed, indices, on_step, keep)


def check_keep(generator: Generator, keep: int | None) -> None:
    """Raises BadInput for a number of first tokens that the generator does not draw."""
    if keep is not None and not 1 <= keep <= generator.num_tokens:
        raise BadInput(f"The generator draws {generator.num_tokens} tokens; it cannot keep {keep}.")


def choose_guidance(
    generator: Generator, guidance: float | Guidance | None, power: float | None, schedule: str | None = None
) -> Guidance | None:
    """The rule for `generate`'s arguments: None = no guidance."""
    if guidance is not None and not isinstance(guidance, int | float):
        return guidance
    return make_guidance(*recommended(generator, guidance, power, schedule))


def recommended(
    generator: Generator, guidance: float | None = None, power: float | None = None, schedule: str | None = None
) -> tuple[str, float, float]:
    """(schedule, scale, power): what is given, else what the generator's card recommends, else no guidance."""
    card = getattr(generator, "card", None) or {}
    scale = (card.get("guidance") or 0.0) if guidance is None else guidance
    power = float(card.get("power") or 1.0) if power is None else power
    return schedule or card.get("schedule") or DEFAULT_SCHEDULE, float(scale), float(power)

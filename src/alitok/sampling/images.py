"""From labels to pictures: draws tokens in batches and decodes them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from alitok.common.draw import Draw
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import guidance_of
from alitok.sampling.weights import PRECISION, for_inference

CPU_BATCH = 32
LARGEST_BATCH = 512  # images: more do not make a GPU faster
STEP_OF_BATCH = 64  # so that a small change in free memory does not change the batch, and with it the images
SHARE_OF_MEMORY = 0.8  # the allocator and the kernels need the rest

Batch = tuple[list[int], Tensor, Tensor]


def sample_images(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: Sequence[int],
    draw: Draw | None = None,
    indices: Sequence[int] | None = None,
    batch: int = 50,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Draw and decode images, a batch at a time.

    Args:
        labels: label of each image, in [0, C].
        draw: settings of the draw; None for those that the generator's card recommends.
        indices: positions of the images in the whole set (default 0, 1, ...); with the seed they decide the random
            numbers.
        batch: number of images drawn together.
        on_step: called with the step's number after each step of a batch.

    Yields:
        indices of the batch, ids (B, N) or (B, N, S), images (B, 3, H, W) float32 in [0, 1].

    Raises:
        BadInput: as `Sampler`.
    """
    indices = range(len(labels)) if indices is None else indices
    parts = ((indices[start : start + batch], labels[start : start + batch]) for start in range(0, len(labels), batch))
    sampler = ImageSampler(generator, tokenizer, Draw.chosen(generator.card) if draw is None else draw)
    yield from sampler.sample(parts, on_step, batch)


class ImageSampler:
    """A generator and a tokenizer, prepared to draw any number of batches.

    On a GPU a batch is decoded on a separate stream while the tokens of the next one are drawn, and yielded only after
    those are queued. The decoder stays in float32.
    """

    def __init__(self, generator: Generator, tokenizer: Tokenizer, draw: Draw) -> None:
        self.tokens, self.seed, self.window = Sampler(generator, draw), draw.seed, draw.window
        self.tokenizer = for_inference(tokenizer, leave=("encoder",))
        self.device = generator.embeddings.weight.device

    def sample(
        self,
        batches: Iterable[tuple[Sequence[int], Sequence[int]]],
        on_step: Callable[[int], None] | None = None,
        size: int = 0,
    ) -> Iterator[Batch]:
        """Yield as `sample_images`.

        Args:
            batches: (indices, labels) of each batch.
            on_step: as for `Sampler.sample`.
            size: on a GPU smaller batches are padded to this, so that one captured step serves all.
        """
        if self.window > 1:
            yield from self._by_windows(batches, on_step, size)
            return
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        waiting: tuple[Batch, torch.cuda.Event] | None = None
        for indices, labels in batches:
            chosen, wanted = list(indices), list(labels)
            fill = max(0, size - len(chosen)) if side is not None else 0
            filled = torch.tensor(wanted + wanted[-1:] * fill)
            ids = self.tokens.sample(filled, chosen + chosen[-1:] * fill, on_step=on_step)[: len(chosen)]
            if side is None:
                yield chosen, ids, self.tokenizer.decode(ids, self.seed, chosen)
                continue
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                images = self.tokenizer.decode(ids, self.seed, chosen)
                decoded = torch.cuda.Event()
                decoded.record(side)
            ids.record_stream(side)
            if waiting is not None:
                yield _handed_over(*waiting, self.device)
            waiting = (chosen, ids, images), decoded
        if waiting is not None:
            yield _handed_over(*waiting, self.device)

    def _by_windows(
        self,
        batches: Iterable[tuple[Sequence[int], Sequence[int]]],
        on_step: Callable[[int], None] | None,
        size: int,
    ) -> Iterator[Batch]:
        """As `sample`. Rows continue with images of the next batches; a batch is yielded when it is complete."""
        wanted = [(list(indices), list(labels)) for indices, labels in batches if len(indices)]
        images = [pair for indices, labels in wanted for pair in zip(indices, labels, strict=True)]
        rows = min(len(images), size or max((len(indices) for indices, _ in wanted), default=0))
        found: dict[int, Tensor] = {}
        first, waiting = 0, iter(wanted)
        indices, _ = next(waiting, ([], []))
        length = self.tokens.draw.keep or self.tokens.generator.num_tokens
        steps = iter(range(len(wanted) * length) if on_step is not None else ())

        def step(_: int) -> None:
            if (number := next(steps, None)) is not None and on_step is not None:
                on_step(number)

        for number, ids in self.tokens.stream(images, rows, step):
            found[number] = ids
            while indices and all(place in found for place in range(first, first + len(indices))):
                tokens = torch.stack([found.pop(first + place) for place in range(len(indices))])
                yield indices, tokens, self.tokenizer.decode(tokens, self.seed, indices)
                first += len(indices)
                indices, _ = next(waiting, ([], []))
        for number in steps:  # batches that were not full
            assert on_step is not None
            on_step(number)


def _handed_over(batch: Batch, decoded: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the current stream wait until this batch is decoded, without waiting for the next one."""
    present = torch.cuda.current_stream(device)
    present.wait_event(decoded)
    batch[2].record_stream(present)
    return batch


def largest_batch(generator: Generator, tokenizer: Tokenizer, draw: Draw, free_bytes: int | None) -> int:
    """The largest batch that fits into the free memory of a GPU; `CPU_BATCH` if that is None.

    At most `LARGEST_BATCH`, and a multiple of `STEP_OF_BATCH` if that many fit. Per image it counts the cache, logits
    in float32 and float64, and the decoder's activations.
    """
    if free_bytes is None:
        return CPU_BATCH
    label = torch.zeros(1, dtype=torch.int64, device=generator.embeddings.weight.device)
    rows = len(guidance_of(draw).branches(generator, label, draw.seed, [0]))
    tokens = generator.num_tokens
    width = generator.heads * generator.head_dim
    at_once = draw.window if generator.causal else tokens  # places whose logits exist at the same time
    cache = rows * len(generator.blocks) * 2 * tokens * width * PRECISION[draw.precision].itemsize * generator.causal
    logits = at_once * generator.codebook_size * generator.sub_codes * (rows * 3 * 4 + 3 * 8)
    widest = max(layer.out_features for layer in tokenizer.decoder.modules() if isinstance(layer, nn.Linear))
    length = tokenizer.decoder.length or tokenizer.num_tokens
    decoder = 4 * 4 * widest * length + 3 * 3 * 4 * tokenizer.image_size**2
    most = max(1, min(LARGEST_BATCH, int(SHARE_OF_MEMORY * free_bytes) // (cache + logits + decoder)))
    return most // STEP_OF_BATCH * STEP_OF_BATCH or most

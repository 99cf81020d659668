"""Draws one picture token by token, with the probabilities of each token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import torch
from torch import Tensor

from alitok.app.layout import Layout, decode_first
from alitok.app.settings import Ids, check_token
from alitok.common.draw import Draw
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import Branch, Guidance, guidance_of

OTHERS = 8  # most probable tokens shown for each token
FRAMES = 24  # frames of a picture that forms
WORK = Lock()  # one task at a time: on a GPU another thread's work would break the capture of a step


@dataclass(frozen=True)
class Token:
    """A token of a picture; without a probability if the generator's head has no logits or it is not causal."""

    ids: Ids
    probability: float | None = None
    others: list[tuple[Ids, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Frame:
    """A picture (3, H, W) in [0, 1] on the CPU, after `count` of its `total` tokens.

    Attributes:
        tokens: all tokens in the last frame, else empty.
    """

    image: Tensor
    count: int
    total: int
    tokens: list[Token] = field(default_factory=list)


class Recorder(Guidance):
    """Wraps a guidance and records the logits from which each token of the first image is drawn.

    It writes them at the position on the device, so that a captured step also records those of later batches.

    Args:
        rule: the wrapped guidance.
        logits: (N, V) or (N, S, V), the buffer to write to.
    """

    def __init__(self, rule: Guidance, logits: Tensor) -> None:
        self.rule, self.logits = rule, logits

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        return self.rule.branches(generator, labels, seed, indices)

    def combine(self, logits: Sequence[Tensor], positions: Tensor, steps: int) -> Tensor:
        combined = self.rule.combine(logits, positions, steps)
        self.logits.index_copy_(0, positions, combined[:1].to(self.logits.dtype))
        return combined


class Stopped(Exception):
    """Raised in the drawing thread when nobody waits for the picture any more."""


class Painter:
    """Draws pictures with one generator, tokenizer and draw, one at a time.

    Raises:
        BadInput: as `Sampler`.

    Attributes:
        fixed: why no other tokens are offered; empty if they are.
    """

    def __init__(self, generator: Generator, tokenizer: Tokenizer, draw: Draw) -> None:
        self.generator, self.tokenizer, self.draw = generator, tokenizer, draw
        self.layout = Layout.of(tokenizer)
        self.logits: Tensor | None = None
        rule, self.fixed = guidance_of(draw), ""
        if not generator.causal:
            self.fixed = "This generator does not draw tokens one by one, so no probable others can be offered."
        elif not generator.output.has_logits:
            self.fixed = "This generator's head gives no logits, so no probable others can be offered."
        if not self.fixed:
            device = generator.embeddings.weight.device
            self.logits = torch.zeros(*generator.id_shape, generator.codebook_size, device=device)
            rule = Recorder(rule, self.logits)
        self.sampler = Sampler(generator, draw, rule)

    def frames(self, label: int, chosen: Sequence[tuple[int, Ids]] = (), most: int = FRAMES) -> Iterator[Frame]:
        """At most `most` frames of the picture as it forms; the last one is the whole picture with its tokens.

        Args:
            chosen: (position, token) pairs that replace drawn tokens. All random numbers stay the same, so tokens
                before the first chosen one stay the same too.

        Raises:
            BadInput: an invalid chosen token.
        """
        given, mask = self._given(chosen)
        total = self.generator.num_tokens
        shown = {-(-total * part // most) - 1 for part in range(1, most)} - {total - 1}
        results: SimpleQueue[Any] = SimpleQueue()
        stop = Event()

        def on_step(step: int) -> None:
            if stop.is_set():
                raise Stopped
            if step in shown and self.sampler.loop is not None:
                image = decode_first(self.tokenizer, self.layout, self.sampler.loop.ids[0, : step + 1])
                results.put(Frame(image.cpu(), step + 1, total))

        def draw() -> None:
            try:
                with WORK:
                    ids = self.sampler.sample(torch.tensor([label]), [0], given, mask, on_step)[0]
                    results.put(self._finished(ids))
            except Stopped:
                return
            except BaseException as error:  # raised again in the waiting thread
                results.put(error)

        thread = Thread(target=draw, daemon=True)
        thread.start()
        try:
            while True:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
                if result.count == total:
                    return
        finally:
            stop.set()
            thread.join()

    def picture(self, label: int, chosen: Sequence[tuple[int, Ids]] = ()) -> Frame:
        """The finished picture; raises as `frames`."""
        *_, last = self.frames(label, chosen, most=1)
        return last

    def _given(self, chosen: Sequence[tuple[int, Ids]]) -> tuple[Tensor | None, Tensor | None]:
        """Ids (1, N) or (1, N, S) with the chosen tokens in their places, and a mask (1, N) of these places."""
        if not chosen:
            return None, None
        given = torch.zeros(1, *self.generator.id_shape, dtype=torch.int64)
        mask = torch.zeros(1, self.generator.num_tokens, dtype=torch.bool)
        for place, ids in chosen:
            check_token(place, ids, self.generator.num_tokens, self.generator.codebook_size, self.generator.sub_codes)
            given[0, place] = torch.tensor(ids if self.generator.sub_codes > 1 else ids[0])
            mask[0, place] = True
        return given, mask

    def _finished(self, ids: Tensor) -> Frame:
        with torch.inference_mode():
            image = self.tokenizer.decode(ids[None], self.draw.seed, [0])[0].clamp(0, 1).cpu()
        rows = [row if isinstance(row, list) else [row] for row in ids.tolist()]
        if self.logits is None:
            tokens = [Token(tuple(row)) for row in rows]
        else:
            tokens = likely_tokens(rows, self.logits / self.draw.temperature)
        return Frame(image, len(ids), len(ids), tokens)


def likely_tokens(ids: list[list[int]], logits: Tensor) -> list[Token]:
    """The drawn tokens with their probabilities, and the most probable tokens with theirs.

    Args:
        ids: N rows of S.
        logits: (N, V) or (N, S, V). Sub-codes are drawn independently, so a token's probability is their product.
    """
    logits = logits if logits.ndim == 3 else logits[:, None]
    probabilities = logits.double().softmax(-1).cpu()  # (N, S, V)
    top = probabilities.topk(min(OTHERS, probabilities.shape[-1]), dim=-1)
    tokens = []
    finite = probabilities.isfinite().flatten(1).all(1).tolist()  # a scale of 1e300 makes logits overflow
    for place, own in enumerate(ids):
        if not finite[place]:
            tokens.append(Token(tuple(own)))
            continue
        found: list[tuple[Ids, float]] = [((), 1.0)]
        for code_ids, values in zip(top.indices[place].tolist(), top.values[place].tolist(), strict=True):
            pairs = list(zip(code_ids, values, strict=True))
            longer = [((*codes, code), share * value) for codes, share in found for code, value in pairs]
            # a token among the best has beginnings among the best
            found = sorted(longer, key=lambda pair: -pair[1])[:OTHERS]
        share = float(probabilities[place, torch.arange(len(own)), torch.tensor(own)].prod())
        tokens.append(Token(tuple(own), share, found))
    return tokens

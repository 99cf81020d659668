"""Masked generation: a bidirectional network fills in masked tokens in a few steps (MaskGIT, arXiv 2202.04200)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from alitok.common.devices import send, widest_float
from alitok.common.errors import BadInput
from alitok.common.random import Step, stream
from alitok.models.generator import CausalAttention, Generator
from alitok.models.seams import draw, image_uniforms
from alitok.models.transformer import attend, init_weights
from alitok.sampling.reveal import Canvas, Reveal

VISIBLE = 0.1  # weight of a known token's loss
SMOOTHING = 0.1  # label smoothing


class FullAttention(CausalAttention):
    """The generator's attention without its mask."""

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        q, k, v = self._project(x, rope)
        x = attend(q, k, v, causal=False, dropout=self.dropout if self.training else 0.0)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class MaskedGenerator(Generator):
    """p(masked tokens | known tokens, class); masked tokens are independent given the known ones.

    The input is [class; N tokens], some of them the mask symbol V. The network is AliTok's generator with full
    attention and its rotary positions; MaskGIT has a BERT with learned positions.

    In training an image has u uniform in 0..1 and max(1, round(N arccos(u) 2 / pi)) masked places. The loss is the
    cross entropy of all places with label smoothing 0.1, weighted 1 if masked and 0.1 if known, over the sum of the
    image's weights (the published code divides by the batch's). In validation the same half of the places is masked in
    every image, and "nats" covers only these, without smoothing.

    Args:
        codebook_size: V.
        arguments: the other arguments of `Generator`.
    """

    causal = False
    cached = False
    sampler = "alitok.ideas.masked.MaskGIT"

    def __init__(self, codebook_size: int, **arguments: Any) -> None:
        super().__init__(codebook_size, **arguments)
        self.output.has_logits = False  # there are none of a token given those before it
        for block in self.blocks:
            block.attention = FullAttention(self.embeddings.embedding_dim, self.heads, self.dropout.p)
            init_weights(block.attention)

    def token_logits(self, symbols: Tensor, labels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of every place.

        Args:
            symbols: (B, N) int64, ids, or V for a masked token.
            labels: (B,) in [0, C].
            condition: (B, N, width) or (B, 1, width), added to each token's embedding.

        Returns:
            (B, N, V).
        """
        logits: Tensor = self.output(self._states(symbols, labels, condition))
        return logits

    def _states(self, symbols: Tensor, labels: Tensor, condition: Tensor | None = None) -> Tensor:
        tokens = self.embed_tokens(symbols)
        tokens = tokens if condition is None else tokens + condition
        x = self.dropout(torch.cat([self.embed_labels(labels), tokens], dim=1))
        for block in self.blocks:
            x = block(x, self.rope)
        return self.norm(x)[:, 1:]

    def hidden(
        self, ids: Tensor, labels: Tensor, order: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, N, width) if all tokens are known."""
        return self._states(ids, labels, condition)

    def losses(
        self,
        ids: Tensor,
        labels: Tensor,
        inputs: Tensor | None = None,
        order: Tensor | None = None,
        step: Step | None = None,
    ) -> dict[str, Tensor]:
        inputs = ids if inputs is None else inputs
        masked = self._masks(len(ids), step, ids.device)
        symbols = torch.where(masked, self.codebook_size, inputs)
        hidden = self._states(symbols, labels)
        logits = self.output(hidden).float().flatten(0, 1)
        smoothing, visible = (0.0, 0.0) if step is None else (SMOOTHING, VISIBLE)
        nats = F.cross_entropy(logits, ids.flatten(), reduction="none", label_smoothing=smoothing).view(ids.shape)
        weights = torch.where(masked, 1.0, visible)
        nats = nats * weights / weights.mean(1, keepdim=True)
        return {"hidden": hidden, "targets": ids, "inputs": symbols, "labels": labels, "nats": nats}

    def _masks(self, images: int, step: Step | None, device: torch.device) -> Tensor:
        """The masked places, (B, N) bool."""
        tokens = self.num_tokens
        if step is None:
            keys = torch.rand(tokens, generator=stream("masked tokens"))
            return send(keys.argsort().argsort() < max(1, tokens // 2), device).expand(images, -1)
        streams = [step.stream("masked tokens", place) for place in step.places]
        uniform = torch.stack([torch.rand((), generator=each) for each in streams])
        keys = torch.stack([torch.rand(tokens, generator=each) for each in streams])
        counts = (tokens * torch.arccos(uniform) * 2 / math.pi).round().clamp_min(1)
        return send(keys, device).argsort(-1).argsort(-1) < send(counts, device)[:, None]


def masked_after(tokens: int, step: int, steps: int) -> int:
    """The number of masked tokens after a step: N arccos((s + 1) / T) 2 / pi, rounded down."""
    return int(tokens * math.acos((step + 1) / steps) * 2 / math.pi)


@dataclass(frozen=True)
class MaskGIT(Reveal):
    """The most confident tokens stay, the others are masked again.

    Step s of T draws all masked places from softmax(logits / (T_r (1 - rho))), rho = (s + 1) / T. A place's confidence
    is the guided logit of its token plus T_r (1 - rho) Gumbel noise. The least confident stay masked, and the last
    step keeps all. If the prefix comes first, prefix and grid each count their steps from 0.

    T_r is in units of logits. Published values are 9.5 for TiTok's 32 tokens in 8 steps, with guidance c + w (c - u),
    w = 4.5 rho of the previous step, and 2.8 for 128 tokens in 64 steps, with power-cosine of 6.9 and power 3. The
    first guidance is nearest to `--schedule linear --guidance 5.5` here.

    Args:
        steps: T.
        randomness: T_r.
        prefix_steps: number of the T steps for the prefix tokens, before all others; 0 = all tokens together. The last
            of them is not random, so 1 would give every image of a class the same prefix.

    Raises:
        BadInput: no step is left for the grid, or a randomness below 0.
    """

    steps: int = 8
    randomness: float = 4.5
    prefix_steps: int = 0

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.prefix_steps)
        if self.prefix_steps == 1:
            raise BadInput("MaskGIT: prefix_steps must be 0, or 2 or more: the last step takes the likeliest tokens.")
        if self.randomness < 0:
            raise BadInput(f"MaskGIT: randomness must be 0 or more, not {self.randomness}.")

    def __call__(self, canvas: Canvas) -> Tensor:
        symbols, mask = canvas.symbols, canvas.generator.codebook_size
        tokens, prefix = symbols.shape[1], canvas.generator.num_prefix
        noise = _noise(canvas, self.steps, tokens, 2)
        first = self.prefix_steps if 0 < prefix < tokens else 0
        parts = [(range(prefix), first), (range(prefix, tokens), self.steps - first)]
        parts = parts if first else [(range(tokens), self.steps)]
        done = 0
        for places, steps in parts:
            for step in range(steps):
                order = torch.arange(tokens, device=symbols.device)
                inside = (order >= places.start) & (order < places.stop)
                logits = canvas.logits(symbols, done, self.steps)
                tau = self.randomness * (1 - (step + 1) / steps)
                value, stays = noise[:, done].unbind(-1)
                flat = (logits / (tau or 1.0) / canvas.temperature).flatten(0, 1)
                drawn = (draw(flat, value.flatten()) if tau else flat.argmax(-1)).view(symbols.shape)
                unknown = (symbols == mask) & inside
                confidence = logits.gather(2, drawn[..., None])[..., 0] - tau * (-stays.clamp_min(1e-20).log()).log()
                confidence = torch.where(unknown, confidence, torch.inf)
                filled = torch.where(unknown, drawn, symbols)
                # on the device, since given tokens make the number of masked places differ between images
                room = unknown.sum(1, keepdim=True)
                again = (room - 1).clamp(max=masked_after(len(places), step, steps))
                again = again if step + 1 < steps else torch.zeros_like(again)
                rank = confidence.argsort(1).argsort(1)
                symbols = torch.where(unknown & (rank < again), mask, filled)
                canvas.done(done)
                done += 1
        return symbols


@dataclass(frozen=True)
class Halton(Reveal):
    """Draws places in the order of a Halton sequence, each once (arXiv 2503.17076).

    Raises (when it draws):
        BadInput: the tokens have no grid.

    The order spreads the places of a step over the grid. After step i of T, floor(n (1 - arccos((i + 1) / T) 2 / pi))
    of the grid's n places are known, and at least one more than before. Each is drawn from softmax(beta logits); beta
    rises from 1 to `sharpen` over the steps. The prefix tokens have no place on the grid, so they come first.

    Args:
        steps: T, including those of the prefix.
        prefix_steps: number of the T steps for the prefix, at least 1.
        sharpen: beta of the last step; the published README has 1.2.

    Raises:
        BadInput: no step is left for the grid, or a sharpening that is not positive.
    """

    steps: int = 32
    prefix_steps: int = 1
    sharpen: float = 1.2

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.prefix_steps)
        if self.prefix_steps < 1 or self.sharpen <= 0:
            raise BadInput(
                "Halton takes at least 1 of prefix_steps and a sharpen above 0, not"
                f" {self.prefix_steps} and {self.sharpen}."
            )

    def __call__(self, canvas: Canvas) -> Tensor:
        symbols, generator = canvas.symbols, canvas.generator
        mask, prefix = generator.codebook_size, generator.num_prefix
        if prefix == generator.num_tokens:
            raise BadInput("Halton needs a grid of tokens, and these have none: take alitok.ideas.masked.MaskGIT.")
        rows = (generator.num_tokens - prefix) // generator.columns
        grid = prefix + halton_order(rows, generator.columns)
        first = min(self.prefix_steps, prefix)
        noise = _noise(canvas, symbols.shape[1])
        groups = [part for part in torch.arange(prefix).tensor_split(first) if len(part)] if prefix else []
        steps, shown = self.steps - len(groups), 0
        for step in range(steps):
            hidden = math.ceil(len(grid) * math.acos((step + 1) / steps) * 2 / math.pi)
            last = min(len(grid), max(shown + 1, len(grid) - hidden))
            groups.append(grid[shown:last])
            shown = last
        for step, places in enumerate(groups):
            if len(places):
                chosen = send(places, symbols.device)
                beta = 1 + (self.sharpen - 1) * step / max(1, len(groups) - 1)
                logits = canvas.logits(symbols, step, len(groups))[:, chosen]
                flat = (beta * logits / canvas.temperature).flatten(0, 1)
                drawn = draw(flat, noise[:, chosen].flatten()).view(len(symbols), -1)
                before = symbols[:, chosen]
                symbols = symbols.index_copy(1, chosen, torch.where(before == mask, drawn, before))
            canvas.done(step)
        return symbols


def _noise(canvas: Canvas, *shape: int) -> Tensor:
    """(B, *shape) uniform numbers on the canvas's device, which may lack float64."""
    device = canvas.symbols.device
    return send(image_uniforms(canvas.seed, canvas.indices, *shape).to(widest_float(device)), device)


def halton_order(rows: int, columns: int) -> Tensor:
    """(rows * columns,) int64: the grid's places in Halton's order, with base 2 for rows and 3 for columns."""
    order: dict[int, None] = {}
    number = 0
    while len(order) < rows * columns:
        place = int(van_der_corput(number, 2) * rows) * columns + int(van_der_corput(number, 3) * columns)
        order.setdefault(place)
        number += 1
    return torch.tensor(list(order))


def van_der_corput(number: int, base: int) -> float:
    """The number's digits in this base, mirrored at the radix point."""
    value, place = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        value += digit * place
    return value


def _check_steps(steps: int, prefix_steps: int) -> None:
    if prefix_steps < 0 or steps <= prefix_steps:
        raise BadInput(f"A masked sampler needs more steps than prefix_steps, not {steps} and {prefix_steps}.")

"""From labels to token ids."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.devices import warn_of_bfloat16
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.models.seams import image_keys, image_uniforms
from alitok.sampling.compiled import CompiledBlock
from alitok.sampling.guidance import Branch, Guidance, guidance_of
from alitok.sampling.loop import TokenLoop, check_other
from alitok.sampling.reveal import Canvas, reveal_for
from alitok.sampling.weights import PRECISION, Precision, for_inference
from alitok.sampling.windows import Job, WindowLoop


class Sampler:
    """Draws token ids from one generator, batch after batch; weights and buffers are prepared once.

    Args:
        generator: its present weights are copied.
        draw: settings of the draw.
        rule: guidance that replaces the draw's.

    Raises:
        BadInput: more tokens to keep than there are, an unknown guidance, Gumbel noise for a head that draws no codes,
            or no compiler.
    """

    def __init__(self, generator: Generator, draw: Draw | None = None, rule: Guidance | None = None) -> None:
        self.draw = draw = Draw() if draw is None else draw
        check_keep(generator, draw.keep)
        if draw.noise == "gumbel" and generator.causal and generator.output.noise_shape != generator.id_shape[1:]:
            raise BadInput(
                f"{type(generator.output).__name__} draws a token in a way of its own: leave Gumbel noise out."
            )
        self.rule = guidance_of(draw) if rule is None else rule
        self.reveal = reveal_for(generator, draw)
        if draw.precision == "bfloat16":
            warn_of_bfloat16(next(generator.parameters()).device)
        self.original = generator
        self.generator = for_inference(generator, draw.precision)
        if draw.compiled:
            self.generator.blocks = nn.ModuleList(map(CompiledBlock, self.generator.blocks))
        self.others: dict[Generator, Generator] = {}  # network of a branch -> its prepared copy
        self.loop: TokenLoop | None = None
        self.made_for: Any = None
        self.windows: WindowLoop | None = None

    @torch.inference_mode()
    def sample(
        self,
        labels: Tensor,
        indices: Sequence[int] | None = None,
        given: Tensor | None = None,
        given_mask: Tensor | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw the tokens of a batch.

        Args:
            labels: (B,) int64 in [0, C].
            indices: positions of the images in the whole set, default 0..B-1: with the seed they decide the random
                numbers.
            given: ids of the first tokens, (B, n) or (B, n, S), that replace the drawn ones if `given_mask` (B, n) is
                true (None: everywhere). Every token is drawn anyway, so the others keep their random numbers.
            on_step: called with the step's number after each step.

        Returns:
            ids (B, N) int64, or (B, keep); with a last axis of S if a token has sub-codes.

        Raises:
            BadInput: a label outside [0, C], different numbers of indices and labels, or a branch of guidance that
                does not fit.
        """
        if indices is not None and len(indices) != len(labels):
            raise BadInput(f"There are {len(labels)} labels and {len(indices)} indices: give as many.")
        if given is None and given_mask is not None:
            raise BadInput("given_mask selects among the given tokens: give them too.")
        self.check_labels(labels)
        if not len(labels):
            device = self.generator.embeddings.weight.device
            return torch.empty(0, *self.generator.id_shape, dtype=torch.int64, device=device)[:, : self.draw.keep]
        indices = range(len(labels)) if indices is None else indices
        if self.draw.window > 1 and given is None:
            pairs = zip(indices, labels.tolist(), strict=True)
            return torch.stack([ids for _, ids in sorted(self.stream(pairs, len(labels), on_step), key=itemgetter(0))])
        branches = self.branches(labels, indices)
        if self.reveal is not None:
            return self.reveal(self._canvas(branches, indices, given, given_mask, on_step))
        loop = self.ready(branches, given is not None)
        if loop.given is not None and given is not None:
            first = given.shape[1]
            loop.given[:, :first] = given
            loop.given_mask[:, :first] = True if given_mask is None else given_mask
            loop.given_mask[:, first:] = False
        return loop.run(branches, self._noise(indices), on_step, self.draw.keep)

    def _canvas(
        self,
        branches: list[Branch],
        indices: Sequence[int],
        given: Tensor | None,
        given_mask: Tensor | None,
        on_step: Callable[[int], None] | None,
    ) -> Canvas:
        """A canvas with every place masked except the given ones."""
        if any(branch.value_weights is not None or branch.sources is not None for branch in branches):
            raise BadInput(f"{type(self.rule).__name__} changes a cache, which masked generation does not have.")
        generator, device = self.generator, branches[0].labels.device
        for branch in branches:
            if branch.generator is not None and branch.generator is not generator:
                check_other(branch.generator, generator)
        symbols = torch.full((len(indices), *generator.id_shape), generator.codebook_size, device=device)
        if given is not None:
            first = given.shape[1]
            known = torch.ones_like(given, dtype=torch.bool) if given_mask is None else given_mask
            symbols[:, :first] = torch.where(known.to(device), given.to(device), symbols[:, :first])
        draw = self.draw
        return Canvas(generator, self.rule, branches, symbols, draw.seed, indices, draw.temperature, on_step)

    def check_labels(self, labels: Tensor) -> None:
        """Raise BadInput for a label outside 0..C."""
        classes = self.generator.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise BadInput(f"labels must lie in 0..{classes} ({classes} = no class).")

    @torch.inference_mode()
    def stream(
        self, images: Iterable[tuple[int, int]], rows: int, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Draw images by windows: `rows` at a time, and a finished row takes the next image.

        Args:
            images: (index in the whole set, label) of each.
            on_step: called with a running number, once per `rows` drawn tokens.

        Yields:
            number of the image in `images`, and its ids (N,) or (N, S), or the first `keep`, in the order of finishing.

        Raises:
            BadInput: guidance that does not work with windows.
        """

        def job(number: int, index: int, label: int) -> Job:
            self.check_labels(torch.tensor([label]))
            return Job(number, self.branches(torch.tensor([label]), [index]), self._noise([index]))

        jobs = (job(number, *image) for number, image in enumerate(images))
        first = next(jobs, None)
        if first is None:
            return
        if self.windows is None or self.windows.rows != rows:
            self.windows = None  # frees the old buffers before the new ones are allocated
            draw, dtype = self.draw, PRECISION[self.draw.precision]
            self.windows = WindowLoop(
                self.generator,
                self.rule,
                first.branches,
                rows,
                draw.window,
                draw.temperature,
                dtype,
                draw.keep,
                self._noise_type,
            )
        yield from self.windows.run(chain([first], jobs), on_step)

    def _noise(self, indices: Sequence[int]) -> Tensor:
        """(B, N, ...) random numbers that decide the draws of these images."""
        numbers = image_keys if self.draw.noise == "gumbel" else image_uniforms
        return numbers(self.draw.seed, indices, self.generator.num_tokens, *self.generator.output.noise_shape)

    @property
    def _noise_type(self) -> torch.dtype | None:
        return torch.int64 if self.draw.noise == "gumbel" else None

    def branches(self, labels: Tensor, indices: Sequence[int]) -> list[Branch]:
        """Guidance's branches for these images, every network prepared for inference."""
        labels = labels.to(self.generator.embeddings.weight.device)
        branches = self.rule.branches(self.generator, labels, self.draw.seed, indices)
        return [replace(branch, generator=self._network(branch.generator)) for branch in branches]

    def _network(self, network: Generator | None) -> Generator:
        if network is None or network is self.generator or network is self.original:
            return self.generator
        if network not in self.others:
            self.others[network] = for_inference(network, self.draw.precision)
        return self.others[network]

    def ready(self, branches: Sequence[Branch], forced: bool = False) -> TokenLoop:
        """The loop for such a batch; reused if the previous batch had the same size and kind."""
        kinds = [
            (
                len(branch.labels),
                branch.generator,
                None if branch.condition is None else branch.condition.shape[1],
                branch.sources is None,
                branch.value_weights is None,
            )
            for branch in branches
        ]
        wanted: Any = (kinds, forced)
        if self.loop is None or self.made_for != wanted:
            self.loop = None  # frees the old buffers before the new ones are allocated
            dtype = PRECISION[self.draw.precision]
            self.loop = TokenLoop(
                self.generator, self.rule, branches, self.draw.temperature, dtype, forced, self._noise_type
            )
            self.made_for = wanted
        return self.loop


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
    """Draw token ids.

    Args:
        generator: in eval mode.
        labels: (B,) int64 in [0, C].
        guidance: scale, 0 for none, or a `Guidance`; None for the scale in the generator's card (no guidance without a
            card).
        power: power of power-cosine guidance; None for the card's (1 if there is none).
        temperature: logits are divided by it.
        seed: with `indices` it decides each image's random numbers.
        indices: positions of the images in the whole set, default 0..B-1: image i is the same in any batch on a CPU.
            On a GPU another batch size rounds differently, so that now and then another token is drawn.
        on_step: called with the step's number after each step.
        schedule: how the scale depends on the position: a name (`SCHEDULES`) or a class path; None for the card's,
            else power-cosine.
        precision: precision of the linear layers' weights.
        keep: draw only this many first tokens; None for all.
        compiled: compile the blocks at the first steps, which takes seconds and rounds differently.

    Returns:
        ids (B, N) int64, or (B, keep); with a last axis of S if a token has sub-codes.

    Raises:
        BadInput: a label outside [0, C], a temperature or power that is not positive, an unknown schedule or precision,
            more tokens to keep than there are, no compiler.
    """
    if callable(guidance) and not isinstance(guidance, Guidance):
        raise BadInput(
            f"guidance is a scale or a Guidance, not {guidance!r}: subclass alitok.sampling.guidance.Guidance."
        )
    rule, scale = (guidance, None) if isinstance(guidance, Guidance) else (None, guidance)
    draw = Draw.chosen(
        generator.card,
        guidance=scale,
        power=power,
        schedule=schedule,
        temperature=temperature,
        seed=seed,
        precision=precision,
        keep=keep,
        compiled=compiled,
    )
    return Sampler(generator, draw, rule).sample(labels, indices, on_step=on_step)


def check_keep(generator: Generator, keep: int | None) -> None:
    """Raise BadInput for a number of first tokens that the generator does not draw."""
    if keep is not None and not 1 <= keep <= generator.num_tokens:
        raise BadInput(f"The generator draws {generator.num_tokens} tokens; it cannot keep {keep}.")

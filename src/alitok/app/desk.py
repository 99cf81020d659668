"""Turns the page's settings into HTML. Nothing here needs gradio."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from torch import Tensor

from alitok.app import markup
from alitok.app.drawing import WORK, Painter, Token
from alitok.app.layout import Layout
from alitok.app.opened import Opened
from alitok.app.rebuilding import GAIN, Rebuilt, difference, neighbors, open_picture, rebuild
from alitok.app.settings import Ids, Settings, check_seed, check_token, first_settings
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.tokenizer import Tokenizer

MOST_PICTURES = 8  # pictures reconstructed together

Report = Callable[[int, int, str], None]  # done, total, what


def no_report(done: int, total: int, what: str) -> None:
    """The default: no progress is shown."""


class Desk:
    """Draws, reconstructs and compares with the opened models, for one caller at a time."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.painter: tuple[tuple[str, str, Draw], Painter] | None = None

    def paint_with(self, generator: str, tokenizer: str, draw: Draw) -> Painter:
        """The painter of these settings: the last one, or a new one."""
        if tokenizer not in self.opened.partners(generator):
            raise BadInput(f"{tokenizer} does not decode the tokens of {generator}; choose its own tokenizer.")
        wanted = (generator, tokenizer, draw)
        if self.painter is None or self.painter[0] != wanted:
            self.painter = None  # frees its copy of the weights first
            painter = Painter(self.opened.generators[generator], self.opened.tokenizers[tokenizer], draw)
            self.painter = wanted, painter
        return self.painter[1]

    def drawn(self, settings: Settings) -> Iterator[str]:
        """HTML of the picture as it forms; the last one has its tokens."""
        number = settings.class_number(self.opened)
        painter = self.paint_with(settings.generator, settings.tokenizer, settings.draw(self.opened))
        chosen = [place for place, _ in settings.tokens]
        title = f"{settings.label}, seed {settings.seed}"
        for frame in painter.frames(number, settings.tokens):
            detail = f"{len(chosen)} chosen" if chosen and frame.tokens else ""
            picture = markup.token_figure(
                frame.image, painter.layout, frame.tokens, title, "truncate", detail, chosen, count=frame.count
            )
            below = markup.ABOUT if frame.tokens else markup.progress(frame.count, frame.total)
            yield f'<div class="generated" data-fixed="{escape(painter.fixed)}">{picture}{below}</div>'

    def rebuilt(
        self,
        paths: Sequence[str | Path],
        settings: Settings,
        replaced: Mapping[int, Mapping[int, Ids]],
        report: Report = no_report,
    ) -> tuple[str, str]:
        """Original, reconstruction and difference of every picture; a file that is no picture gets a sentence.

        Args:
            replaced: number of the picture -> position -> replaced token.

        Returns:
            The HTML, and the command that reconstructs the same pictures; empty if there is no such command.
        """
        tokenizer, layout = self._tokenizer(settings.tokenizer)
        rows: list[str] = []
        names: list[str] = []  # of the readable pictures
        for number, path in enumerate(paths[:MOST_PICTURES]):
            name = Path(path).name
            report(number, len(paths), name)
            try:
                original = open_picture(path, tokenizer.image_size)
                with WORK:
                    made = rebuild(tokenizer, original, settings.keep, replaced.get(number), len(names))
            except BadInput as error:
                rows.append(markup.message(str(error)))
                continue
            names.append(name)
            rows.append(_row(made, layout, name, number, tuple(replaced.get(number, ()))))
        if len(paths) > MOST_PICTURES:
            rows.append(markup.message(f"Only the first {MOST_PICTURES} of {len(paths)} pictures are shown."))
        if not rows:
            return "", ""
        html = f'<div data-tokenizer="{escape(settings.tokenizer)}">{"".join(rows)}{markup.ABOUT}</div>'
        refused = settings.keep not in (None, tokenizer.num_tokens) and not tokenizer.any_length
        return html, settings.reconstruct_command(names) if names and not refused else ""

    def with_replaced(
        self, name: str, replaced: Mapping[int, Mapping[int, Ids]], picture: int, place: int, ids: Ids
    ) -> dict[int, Mapping[int, Ids]]:
        """The replaced tokens with one more; raises BadInput if the tokenizer has no such token."""
        tokenizer, _ = self._tokenizer(name)
        check_token(place, ids, tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.sub_codes)
        return {**replaced, picture: {**replaced.get(picture, {}), place: ids}}

    def neighbors(self, name: str, code: int) -> tuple[list[int], list[int]]:
        """A tokenizer's codes nearest to one and farthest from it; raises BadInput for an unknown code."""
        with WORK:
            return neighbors(self._tokenizer(name)[0], code)

    def compared_generators(
        self, names: Sequence[str], label: str, seed: int, guidance: float | None, report: Report = no_report
    ) -> str:
        """The same class and seed drawn by several pairs, each as its card recommends.

        Args:
            names: elements of `pair_names`.
            guidance: scale for all; None for each card's own.

        Raises:
            BadInput: an unknown pair, or no pair has the class. If only some have it, the others get a sentence.
        """
        pairs = dict(zip(self.pair_names(), self.opened.pairs, strict=True))
        figures: list[str] = []
        refused: list[BadInput] = []
        for number, name in enumerate(names):
            if name not in pairs:
                raise BadInput(f"{name} is not open here; choose among {', '.join(pairs)}.")
            report(number, len(names), name)
            generator, tokenizer = pairs[name]
            card = self.opened.generators[generator].card
            draw = Draw.chosen(card, seed=check_seed(seed), guidance=guidance)
            try:
                class_number = Settings("compare", generator, tokenizer, label).class_number(self.opened)
            except BadInput as error:
                refused.append(error)
                continue
            image = self.paint_with(generator, tokenizer, draw).picture(class_number).image
            figures.append(markup.figure(image, name, "truncate", f"{label}, guidance {draw.guidance:g}, seed {seed}"))
        if not figures:
            if refused:
                raise refused[0]
            return markup.message("Choose a generator.")
        sentences = "".join(dict.fromkeys(markup.message(str(error)) for error in refused))
        return f'{sentences}<div class="pictures">{"".join(figures)}</div>'

    def compared_tokenizers(self, names: Sequence[str], path: str | Path, report: Report = no_report) -> str:
        """The same picture reconstructed by several tokenizers, each at its own size."""
        figures = []
        for number, name in enumerate(names):
            tokenizer, _ = self._tokenizer(name)
            report(number, len(names), name)
            original = open_picture(path, tokenizer.image_size)
            with WORK:
                made = rebuild(tokenizer, original)
            if not number:
                figures.append(markup.figure(made.original, Path(path).name))
            detail = f"{measures(made)}, {tokenizer.num_tokens} tokens"
            figures.append(markup.figure(made.image, name, detail=detail))
        return f'<div class="pictures">{"".join(figures)}</div>' if figures else markup.message("Choose a tokenizer.")

    def comparison(
        self, pairs: Sequence[str], label: str, seed: int, guidance: float | None, tokenizers: Sequence[str]
    ) -> Settings:
        """The settings of a comparison, for the address. Its generator is the first one that has the class."""
        generators = dict(zip(self.pair_names(), (generator for generator, _ in self.opened.pairs), strict=True))
        chosen = [generators[name] for name in pairs if name in generators]
        having = [generator for generator in chosen if label in self.opened.labels(generator)]
        base = first_settings(self.opened, next(iter([*having, *chosen]), None))
        return replace(base, tab="compare", label=label, seed=seed, guidance=guidance, models=(*pairs, *tokenizers))

    def pair_names(self) -> list[str]:
        """One name for each pair of generator and tokenizer."""
        return [f"{generator} + {tokenizer}" for generator, tokenizer in self.opened.pairs]

    def _tokenizer(self, name: str) -> tuple[Tokenizer, Layout]:
        if name not in self.opened.tokenizers:
            raise BadInput(f"Tokenizer {name} is not open here; choose among {', '.join(self.opened.tokenizers)}.")
        tokenizer = self.opened.tokenizers[name]
        return tokenizer, Layout.of(tokenizer)


def measures(made: Rebuilt) -> str:
    """PSNR and SSIM as text."""
    if made.psnr is None:
        return "first tokens only: the others are zeros, their cells gray"
    return f"PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.3f}"


def _row(made: Rebuilt, layout: Layout, name: str, number: int, replaced: tuple[int, ...]) -> str:
    tokens = [Token(ids) for ids in made.ids]
    last: tuple[Tensor, str] = (difference(made.image, made.original), f"difference x {GAIN}")
    if made.change is not None:
        last = made.change, f"what the replaced tokens change, x {GAIN}"
    middle = markup.token_figure(
        made.image, layout, tokens, "reconstruction", detail=measures(made), chosen=replaced, picture=number
    )
    return f'<div class="pictures">{markup.figure(made.original, name)}{middle}{markup.figure(*last)}</div>'

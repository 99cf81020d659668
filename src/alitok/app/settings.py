"""The page's settings, as the query of its address and as the command that gives the same picture."""

import functools
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from alitok.app.opened import OF_CARD, Opened
from alitok.common.build import nearest
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator

TABS = ("generate", "reconstruct", "compare")
Ids = tuple[int, ...]  # ids of one token, one per sub-code
LARGEST_SEED = 2**53  # the numbers of a browser have 53 bits


@dataclass(frozen=True)
class Settings:
    """What decides the pictures of the page.

    Attributes:
        tab: the open tab.
        generator, tokenizer: names of opened models; the generator is empty if there is none.
        label: an element of `Opened.labels`.
        guidance: scale; None for the card's.
        schedule: an element of `Opened.schedules`.
        tokens: (position, token) pairs that replace the generator's tokens.
        keep: number of tokens from which a reconstruction is decoded; None for all.
        models: names of the compared models; empty for all.
    """

    tab: str
    generator: str
    tokenizer: str
    label: str = ""
    guidance: float | None = None
    power: float = 1.0
    schedule: str = ""
    temperature: float = 1.0
    seed: int = 0
    tokens: tuple[tuple[int, Ids], ...] = ()
    keep: int | None = None
    models: tuple[str, ...] = ()

    def draw(self, opened: Opened) -> Draw:
        """The draw of these settings.

        Raises:
            BadInput: a number outside its bounds.
        """
        return Draw.chosen(
            opened.generators[self.generator].card,
            guidance=self.guidance,
            power=self.power,
            schedule=None if self.schedule == OF_CARD else self.schedule,
            temperature=self.temperature,
            seed=check_seed(self.seed),
        )

    def class_number(self, opened: Opened) -> int:
        """The number of the class.

        Raises:
            BadInput: the generator has no class of that name.
        """
        names = opened.labels(self.generator)
        if self.label not in names:
            raise BadInput(f"{self.generator} has no class {self.label!r}{nearest(self.label, names)}.")
        return names.index(self.label)

    def query(self) -> str:
        """The settings as the query of an address, without `?`."""
        pairs: list[tuple[str, Any]] = [("tab", self.tab)]
        if self.generator:
            pairs += [("generator", self.generator), ("class", self.label)]
            pairs += [] if self.guidance is None else [("guidance", _short(self.guidance))]
            pairs += [("power", _short(self.power)), ("schedule", self.schedule)]
            pairs += [("temperature", _short(self.temperature)), ("seed", self.seed)]
        pairs += [("tokenizer", self.tokenizer)]
        if self.tokens:
            pairs.append(("tokens", ",".join(f"{place}:{'.'.join(map(str, ids))}" for place, ids in self.tokens)))
        if self.keep is not None:
            pairs.append(("keep", self.keep))
        pairs += [("model", name) for name in self.models]
        return urlencode(pairs)

    def sample_command(self, opened: Opened) -> str:
        """The command that draws the same picture, without chosen tokens, as the only PNG in a folder."""
        words = ["alitok", "sample", "--generator", self.generator, "--tokenizer", self.tokenizer]
        # a name may be a number or hold a comma
        words += ["--classes", str(self.class_number(opened)), "--per-class", "1"]
        words += [] if self.guidance is None else ["--guidance", _short(self.guidance)]
        words += ["--power", _short(self.power)]
        if self.schedule != OF_CARD:
            words += ["--schedule", self.schedule]
        words += ["--temperature", _short(self.temperature), "--seed", str(self.seed)]
        # on a GPU another batch rounds differently
        words += ["--batch", "1", "--device", str(opened.device)]
        return shlex.join([*words, "--out", "picture"])

    def reconstruct_command(self, pictures: Sequence[str]) -> str:
        """The command that reconstructs the same pictures from the same number of tokens."""
        words = ["alitok", "reconstruct", "--tokenizer", self.tokenizer, *pictures]
        words += [] if self.keep is None else ["--keep", str(self.keep)]
        return shlex.join([*words, "--out", "reconstructed"])


def first_settings(opened: Opened, generator: str | None = None) -> Settings:
    """The settings of a fresh page: the first pair, or a generator's, drawn as its card recommends."""
    if not opened.generators:
        return Settings("reconstruct", "", next(iter(opened.tokenizers)))
    generator = next(iter(opened.generators)) if generator is None else generator
    draw = opened.recommended(generator)
    schedule = draw.schedule if draw.schedule in opened.schedules(generator) else OF_CARD
    return Settings(
        "generate",
        generator,
        opened.partners(generator)[0],
        opened.labels(generator)[0],
        draw.guidance,
        draw.power,
        str(schedule),
        draw.temperature,
        draw.seed if abs(draw.seed) < LARGEST_SEED else 0,
    )


def read_query(query: str, opened: Opened) -> tuple[Settings, list[str]]:
    """The settings in an address, and a sentence for each value that is refused.

    Missing values are those of a fresh page. An address may come from anybody, so it can only choose among the opened
    models and named schedules.
    """
    values = parse_qs(query.removeprefix("?"))
    refused: list[str] = []

    def taken(key: str, read: Callable[[str], Any], default: Any = None) -> Any:
        try:
            return read(values[key][-1]) if key in values else default
        except BadInput as error:
            refused.append(f"The address has {key} {values[key][-1][:60]!r}. {error}")
            return default

    base = first_settings(opened, taken("generator", _one_of(opened.generators)))
    tab = taken("tab", _one_of(TABS if opened.generators else TABS[1:]), base.tab)
    if tab == "compare":
        base = replace(base, guidance=None)  # each card has its own
    paired = base.generator and tab != "reconstruct"
    tokenizers = opened.partners(base.generator) if paired else list(opened.tokenizers)
    tokenizer = taken("tokenizer", _one_of(tokenizers), tokenizers[0])
    found: dict[str, Any] = {"tab": tab, "tokenizer": tokenizer}
    total = opened.tokenizers[tokenizer].num_tokens
    if (keep := taken("keep", _whole)) is not None:
        found["keep"] = min(max(keep, 1), total)
        if keep != found["keep"]:
            refused.append(f"The address asks for a keep of less than 1 or more than {total}: it is {found['keep']}.")
    models = _one_of([*(f"{own} + {tokenizer}" for own, tokenizer in opened.pairs), *opened.tokenizers])
    names = []
    for name in values.pop("model", ()):
        values["model"] = [name]
        names += [] if (known := taken("model", models)) is None else [known]
    found["models"] = tuple(names)
    if base.generator:
        network = opened.generators[base.generator]
        found["label"] = taken("class", _one_of(opened.labels(base.generator)), base.label)
        found["schedule"] = taken("schedule", _one_of(opened.schedules(base.generator)), base.schedule)
        found["seed"] = taken("seed", lambda text: check_seed(_whole(text)), base.seed)
        for key in ("guidance", "power", "temperature"):
            found[key] = taken(key, functools.partial(_of_draw, key), getattr(base, key))
        found["tokens"] = taken("tokens", lambda text: _tokens(text, network), ())
    return replace(base, **found), refused


def changed_tokens(tokens: Sequence[tuple[int, Ids]], place: int, ids: Ids) -> tuple[tuple[int, Ids], ...]:
    """The chosen tokens before a place, and its new one. Later choices belonged to another picture."""
    return (*((own, old) for own, old in tokens if own < place), (place, ids))


def _short(number: float) -> str:
    """The number with all its digits, without a needless .0."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _one_of(choices: Iterable[str]) -> Callable[[str], str]:
    known = list(choices)

    def read(value: str) -> str:
        if value not in known:
            shown = ", ".join(known) if len(known) <= 12 else f"{len(known)} others"
            raise BadInput(f"There is {shown or 'none'}{nearest(value, known)}.")
        return value

    return read


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise BadInput(f"Give a {'whole ' if kind is int else ''}number.") from error


def _whole(text: str) -> int:
    number: int = _number(text, int)
    return number


def _of_draw(key: str, text: str) -> float:
    number: float = _number(text, float)
    Draw.of({key: number})  # its bounds
    return number


def _tokens(text: str, network: Generator) -> tuple[tuple[int, Ids], ...]:
    """The chosen tokens in a text like "12:85,30:4.7", by position."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        found = {int(place): tuple(int(code) for code in ids.split(".")) for place, ids in pairs}
    except ValueError as error:
        raise BadInput("Write position:id,position:id, e.g. 12:85,30:4.") from error
    for place, ids in found.items():
        check_token(place, ids, network.num_tokens, network.codebook_size, network.sub_codes)
    return tuple(sorted(found.items()))


def check_seed(seed: int) -> int:
    """The seed; raises BadInput for one that a browser would round."""
    if abs(seed) >= LARGEST_SEED:
        raise BadInput(f"A seed is a whole number below 2^53 ({LARGEST_SEED:,}).")
    return seed


def check_token(place: int, ids: Ids, tokens: int, codes: int, sub_codes: int) -> None:
    """Raise BadInput for an invalid token; the page may send anything."""
    if not (isinstance(place, int) and 0 <= place < tokens):
        raise BadInput(f"There is no token {place}: positions are 0 to {tokens - 1}.")
    if len(ids) != sub_codes or not all(isinstance(code, int) and 0 <= code < codes for code in ids):
        form = f"{sub_codes} ids of" if sub_codes > 1 else "an id of"
        raise BadInput(f"{'.'.join(map(str, ids))} is no token: give {form} 0 to {codes - 1}.")

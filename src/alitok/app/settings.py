"""The settings of the page: in its address, and as the command that gives the same picture."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from alitok.app.opened import OF_CARD, Opened
from alitok.common.build import nearest
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.sampling.sets import class_names

TABS = ("generate", "reconstruct", "compare")
Ids = tuple[int, ...]  # of one token, one for each sub-code


@dataclass(frozen=True)
class Settings:
    """What decides the pictures of the page.

    Attributes:
        tab: which is open.
        generator, tokenizer: names of opened models; the generator is empty if there is none.
        label: name of the class.
        guidance: scale; None for the card's.
        schedule: a name of `Opened.schedules`.
        tokens: chosen tokens by position, which stand in place of those that the generator would draw.
        keep: tokens that a reconstruction is decoded from; None for all.
        models: names of what is compared; empty for everything.
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
        """How the picture is drawn.

        Raises:
            BadInput: a number outside of its bounds.
        """
        return Draw.chosen(
            opened.generators[self.generator].card,
            guidance=self.guidance,
            power=self.power,
            schedule=None if self.schedule == OF_CARD else self.schedule,
            temperature=self.temperature,
            seed=self.seed,
        )

    def class_number(self, opened: Opened) -> int:
        """The number of the class.

        Raises:
            BadInput: the generator has no class of that name.
        """
        names = class_names(opened.generators[self.generator])
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
        """The command that draws the same picture, before tokens were chosen, as the only PNG of a folder."""
        words = ["alitok", "sample", "--generator", self.generator, "--tokenizer", self.tokenizer]
        # a name may be a number or hold a comma
        words += ["--classes", str(self.class_number(opened)), "--per-class", "1"]
        words += [] if self.guidance is None else ["--guidance", _short(self.guidance)]
        words += ["--power", _short(self.power)]
        if self.schedule != OF_CARD:
            words += ["--schedule", self.schedule]
        words += ["--temperature", _short(self.temperature), "--seed", str(self.seed)]
        # on a GPU another batch rounds otherwise
        words += ["--batch", "1", "--device", str(opened.device)]
        return shlex.join([*words, "--out", "picture"])

    def reconstruct_command(self, pictures: Sequence[str]) -> str:
        """The command that reconstructs the same pictures from the same number of tokens."""
        words = ["alitok", "reconstruct", "--tokenizer", self.tokenizer, *pictures]
        words += [] if self.keep is None else ["--keep", str(self.keep)]
        return shlex.join([*words, "--out", "reconstructed"])


def first_settings(opened: Opened, generator: str | None = None) -> Settings:
    """What the page opens with: the first pair, or that of a generator, drawn as its card recommends."""
    if not opened.generators:
        return Settings("reconstruct", "", next(iter(opened.tokenizers)))
    generator = next(iter(opened.generators)) if generator is None else generator
    draw = opened.recommended(generator)
    schedule = draw.schedule if draw.schedule in opened.schedules(generator) else OF_CARD
    return Settings(
        "generate",
        generator,
        opened.partners(generator)[0],
        class_names(opened.generators[generator])[0],
        draw.guidance,
        draw.power,
        str(schedule),
        draw.temperature,
        draw.seed,
    )


def read_query(query: str, opened: Opened) -> Settings:
    """The settings of an address; what it does not set is as the page opens.

    An address may come from anybody: it chooses among the opened models and named schedules, and nothing else.

    Raises:
        BadInput: a value that is not there or no number, a model that is not open.
    """
    values = parse_qs(query.removeprefix("?"))
    given = {key: value[-1] for key, value in values.items()}
    generator = _one_of(given, "generator", list(opened.generators))
    base = first_settings(opened, generator)
    if given.get("tab") == "compare":
        base = replace(base, guidance=None)  # each card has its own
    tokenizers = opened.partners(base.generator) if base.generator else list(opened.tokenizers)
    if given.get("tab") == "reconstruct":
        tokenizers = list(opened.tokenizers)
    models = [f"{own} + {tokenizer}" for own, tokenizer in opened.pairs] + list(opened.tokenizers)
    found: dict[str, Any] = {
        "tab": _one_of(given, "tab", TABS),
        "tokenizer": _one_of(given, "tokenizer", tokenizers),
        "keep": _number(given, "keep", int),
        "models": tuple(_one_of({"model": name}, "model", models) for name in values.get("model", ())) or None,
        "tokens": _tokens(given["tokens"]) if "tokens" in given else None,
    }
    if base.generator:
        found |= {
            "label": _one_of(given, "class", class_names(opened.generators[base.generator])),
            "schedule": _one_of(given, "schedule", opened.schedules(base.generator)),
            "seed": _number(given, "seed", int),
        }
        found |= {name: _number(given, name, float) for name in ("guidance", "power", "temperature")}
    settings = replace(base, **{name: value for name, value in found.items() if value is not None})
    if settings.generator:
        settings.draw(opened)  # its bounds
    return settings


def changed_tokens(tokens: Sequence[tuple[int, Ids]], place: int, ids: Ids) -> tuple[tuple[int, Ids], ...]:
    """The chosen tokens up to a place, and then its new one: what was chosen behind it belonged to another picture."""
    return (*((own, old) for own, old in tokens if own < place), (place, ids))


def _short(number: float) -> str:
    """The number without a needless .0, and with every digit that it has."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _one_of(given: dict[str, str], key: str, choices: Sequence[str]) -> str | None:
    value = given.get(key)
    if value is not None and value not in choices:
        known = ", ".join(choices) if len(choices) <= 12 else f"{len(choices)} others"
        raise BadInput(f"The address asks for {key} {value!r}; there is {known or 'none'}{nearest(value, choices)}.")
    return value


def _number(given: dict[str, str], key: str, kind: type[int] | type[float]) -> Any:
    if key not in given:
        return None
    try:
        return kind(given[key])
    except ValueError as error:
        raise BadInput(f"The address has {key} {given[key]!r}, which is no number; correct it.") from error


def _tokens(text: str) -> tuple[tuple[int, Ids], ...]:
    """Chosen tokens of "12:85,30:4.7", by position."""
    try:
        pairs = (part.split(":") for part in text.split(","))
        return tuple(sorted((int(place), tuple(int(code) for code in ids.split("."))) for place, ids in pairs))
    except ValueError as error:
        raise BadInput(f"The address has tokens {text!r}; write position:id,position:id, e.g. 12:85,30:4.") from error

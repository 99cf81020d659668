"""Every setting that decides an image, except for its class, its number and the networks."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from alitok.common.errors import BadInput

DEFAULT_SCHEDULE = "power-cosine"
RECOMMENDED = ("guidance", "power", "schedule", "seed", "sampler")  # keys of a generator's card
PRECISIONS = ("float32", "bfloat16")
NOISES = ("inverse", "gumbel")


@dataclass(frozen=True)
class Draw:
    """How images are drawn. The command line, the loop, `samples.json` and the card all use this record.

    Attributes:
        guidance: scale of guidance; 0 for none.
        power: exponent of power-cosine guidance.
        schedule: a name of `sampling.guidance.SCHEDULES`, a class path, or a class block.
        temperature: logits are divided by it.
        seed: with an image's number, it decides the image's random numbers.
        precision: type of the linear layers' weights and of the cache.
        keep: draw only this many tokens, the first ones; None for all.
        compiled: the blocks of the generator are compiled, which rounds differently.
        window: the most tokens that one pass of the networks draws. In float32 on a CPU the ids are the same for every
            window; elsewhere another window rounds differently (see `sampling.windows`).
        noise: random numbers that draw a token: "inverse", one uniform number, or "gumbel", one number for each code.
        sampler: class path or class block of the `sampling.reveal.Reveal` for a generator that is not causal; None for
            the generator's own.

    Raises:
        BadInput: a number is out of bounds, or the precision or the noise is unknown.
    """

    guidance: float = 0.0
    power: float = 1.0
    schedule: str | Mapping[str, Any] = DEFAULT_SCHEDULE
    temperature: float = 1.0
    seed: int = 0
    precision: str = "float32"
    keep: int | None = None
    compiled: bool = False
    window: int = 1
    sampler: str | Mapping[str, Any] | None = None
    noise: str = "inverse"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise BadInput(f"The guidance scale must be 0 (none) or more, not {self.guidance}.")
        if not (math.isfinite(self.power) and self.power > 0):
            raise BadInput(f"The guidance power must be above 0, not {self.power}.")
        if not 0 < self.temperature < math.inf:
            raise BadInput(f"temperature must be above 0 and finite, not {self.temperature}.")
        if self.window < 1:
            raise BadInput(f"The window must be at least 1 token, not {self.window}.")
        if self.precision not in PRECISIONS:
            raise BadInput(f"Precision {self.precision!r} is unknown: choose {' or '.join(PRECISIONS)}.")
        if self.noise not in NOISES:
            raise BadInput(f"Noise {self.noise!r} is unknown: choose {' or '.join(NOISES)}.")

    @classmethod
    def chosen(cls, card: Mapping[str, Any], **given: Any) -> "Draw":
        """The given values that are not None, else those that a generator's card recommends, else the defaults."""
        recommended = {key: card.get(key) for key in RECOMMENDED}
        values = recommended | {key: value for key, value in given.items() if value is not None}
        return cls.of(values)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Draw":
        """The draw in a record such as `samples.json`. Ignores other keys and None."""
        known = {field.name: record[field.name] for field in fields(cls) if record.get(field.name) is not None}
        for key in ("guidance", "power"):
            if key in known:
                known[key] = float(known[key])
        return cls(**known)

    def record(self) -> dict[str, Any]:
        """The fields for JSON, without a window of 1, a sampler of None and inverse noise."""
        usual = (("window", 1), ("sampler", None), ("noise", "inverse"))
        return {key: value for key, value in asdict(self).items() if (key, value) not in usual}

"""Everything that decides an image besides its class, its number and the networks, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from alitok.common.errors import BadInput

DEFAULT_SCHEDULE = "power-cosine"
RECOMMENDED = ("guidance", "power", "schedule", "seed", "sampler")  # keys of a generator's card
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Draw:
    """The one record of how images are drawn: from the command line to the loop, `samples.json` and the card.

    Attributes:
        guidance: scale; 0 for none.
        power: of power-cosine guidance.
        schedule: a name of `sampling.guidance.SCHEDULES`, a class path, or a class block.
        temperature: logits are divided by it.
        seed: with an image's number it decides the image's random numbers.
        precision: of the weights of the linear layers and of the cache.
        keep: draw the first tokens only; None for all.
        compiled: the blocks of the generator are compiled, which rounds differently.
        window: tokens that a pass of the networks draws at most (see `sampling.windows`). Another window rounds
            differently, as another batch does on a GPU.
        sampler: class path or class block of the `sampling.reveal.Reveal` of a generator that is not causal; None for
            the generator's own.

    Raises:
        BadInput: a number outside of its bounds, or an unknown precision.
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

    @classmethod
    def chosen(cls, card: Mapping[str, Any], **given: Any) -> "Draw":
        """What is given and not None, else what a generator's card recommends, else the defaults."""
        recommended = {key: card.get(key) for key in RECOMMENDED}
        values = recommended | {key: value for key, value in given.items() if value is not None}
        return cls.of(values)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Draw":
        """The draw in a record such as `samples.json`; other keys are passed over, and so is None."""
        known = {field.name: record[field.name] for field in fields(cls) if record.get(field.name) is not None}
        for key in ("guidance", "power"):
            if key in known:
                known[key] = float(known[key])
        return cls(**known)

    def record(self) -> dict[str, Any]:
        """The fields, ready for JSON, without a window of 1 and a sampler of None."""
        usual = (("window", 1), ("sampler", None))
        return {key: value for key, value in asdict(self).items() if (key, value) not in usual}

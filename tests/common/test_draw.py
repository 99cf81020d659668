"""One record of how images are drawn."""

import json

import pytest

from alitok.common.draw import Draw
from alitok.common.errors import BadInput

CARD = {"guidance": 3, "power": 1.5, "schedule": "softcfg", "seed": 7, "digest": "0", "metrics": {}}


def test_what_is_given_goes_before_the_card_and_the_card_before_the_defaults() -> None:
    assert Draw.chosen({}) == Draw()
    assert Draw.chosen({"guidance": None, "power": None}) == Draw()  # cards of 0.1 have all keys
    assert Draw.chosen(CARD) == Draw(3.0, 1.5, "softcfg", seed=7)
    assert Draw.chosen(CARD, guidance=0.0, power=None, seed=0, keep=4) == Draw(0.0, 1.5, "softcfg", seed=0, keep=4)


@pytest.mark.parametrize("schedule", ["linear", {"class_path": "softcfg", "init_args": {"scale": 2.0}}])
def test_a_record_gives_the_same_draw_again(schedule: object) -> None:
    draw = Draw(2.5, 1.5, schedule, 0.9, 11, "bfloat16", 5, True)  # type: ignore[arg-type]
    record = json.loads(json.dumps({"count": 3, **draw.record(), "name": "g"}))
    assert Draw.of(record) == draw


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance": -1.0}, "scale must be 0"),
        ({"power": 0.0}, "power must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"precision": "float16"}, "choose float32 or bfloat16"),
        ({"noise": "normal"}, "choose inverse or gumbel"),
    ],
)
def test_numbers_outside_of_their_bounds(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Draw(**arguments)  # type: ignore[arg-type]


def test_noise_is_in_a_record_unless_it_is_the_usual_one() -> None:
    assert "noise" not in Draw().record()
    draw = Draw(noise="gumbel")
    assert Draw.of(json.loads(json.dumps(draw.record()))) == draw

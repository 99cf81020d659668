"""Learning rates and turns, held against the recipe's own numbers."""

import math

import pytest

from alitok.common.errors import BadInput
from alitok.training.schedule import Schedule

TOKENIZER = {
    "warmup": {"steps": 50_000, "lr": 1e-4},
    "main": {"steps": 200_000, "lr": [1e-4, 2e-5]},
    "gan": {"steps": 100_000, "lr": [2e-5, 2e-6], "adversarial": True},
}


def test_tokenizer_recipe() -> None:
    schedule = Schedule(TOKENIZER, warmup_steps=10_000)
    assert schedule.total_steps == 350_000
    assert schedule.at(0).lr == 0.0
    assert schedule.at(1).lr == pytest.approx(1e-4 / 10_000)
    assert schedule.at(9_999).lr == pytest.approx(1e-4 * 0.9999)
    assert schedule.at(10_000).lr == schedule.at(49_999).lr == pytest.approx(1e-4)
    assert schedule.at(50_000).name == "main"
    assert schedule.at(150_000).lr == pytest.approx(6e-5)
    assert schedule.at(249_999).lr == pytest.approx(2e-5, rel=1e-4)
    assert schedule.at(249_999).name == "main"


def test_adversarial_batches_alternate_and_the_rate_moves_on_the_generators() -> None:
    schedule = Schedule(TOKENIZER, warmup_steps=10_000)
    turns = [schedule.at(250_000 + step) for step in range(6)]
    assert [moment.discriminator for moment in turns] == [False, True] * 3
    assert turns[0].lr == pytest.approx(2e-5)
    assert turns[1].lr == turns[2].lr  # the discriminator's batch moves nothing
    assert turns[4].lr == pytest.approx(2e-5 - 1.8e-5 * 2 / 50_000)
    assert schedule.at(300_000).lr == pytest.approx(1.1e-5)


def test_generator_recipe_is_a_warm_up_and_half_a_cosine() -> None:
    schedule = Schedule({"main": {"steps": 500_000, "lr": [4e-4, 1e-5], "shape": "cosine"}}, warmup_steps=62_500)
    for step in (0, 1, 31_250, 62_499):
        assert schedule.at(step).lr == pytest.approx(4e-4 * step / 62_500)
    for step in (62_500, 200_000, 281_250, 499_999):
        progress = (step - 62_500) / 437_500
        assert schedule.at(step).lr == pytest.approx(1e-5 + (4e-4 - 1e-5) * (1 + math.cos(math.pi * progress)) / 2)


def test_discriminator_has_no_warm_up() -> None:
    schedule = Schedule({"gan": {"steps": 10, "lr": 1e-3, "adversarial": True}}, warmup_steps=100)
    assert schedule.at(0).lr == 0.0
    assert schedule.at(1).lr == pytest.approx(1e-3)
    assert schedule.at(2).lr == pytest.approx(1e-5)


def test_weights_default_to_one_and_zero_switches_a_term_off() -> None:
    schedule = Schedule({"a": {"steps": 1, "lr": 1, "weights": {"lpips": 0}}, "b": {"steps": 1, "lr": 1}})
    assert schedule.uses("lpips")
    assert schedule.uses("mse")
    assert not Schedule({"a": {"steps": 1, "lr": 1, "weights": {"lpips": 0.0}}}).uses("lpips")


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ({}, "phases is empty"),
        ({"main": {"step": 5, "lr": 1}}, "did you mean 'steps'"),
        ({"main": {"steps": 5}}, "needs steps and lr"),
        ({"main": {"steps": 0, "lr": 1}}, "at least 1"),
        ({"main": {"steps": 5, "lr": 1, "shape": "cosin"}}, "linear or cosine"),
    ],
)
def test_bad_phases(phases: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Schedule(phases)


def test_a_warm_up_has_no_fewer_than_no_steps() -> None:
    with pytest.raises(BadInput, match="warmup_steps must be 0 or more, not -5"):
        Schedule({"main": {"steps": 5, "lr": 1}}, -5)

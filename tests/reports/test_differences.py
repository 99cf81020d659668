"""Paired differences over seeds."""

import math

import numpy as np
import pytest

from alitok.common.errors import BadInput
from alitok.reports.differences import BASE, chance, collapsed, critical, difference, table, verdict_table


def test_pairs_see_what_spreads_hide() -> None:
    """Seeds that differ by 0.5 dB, and an idea that is 0.1 above in each."""
    base, idea = [20.0, 20.5, 21.0], [20.1, 20.61, 21.09]
    found = difference(base, idea)
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(0.01 / math.sqrt(3))
    assert (found.above, found.seeds, found.decided, found.needed) == (3, 3, True, 3)


def test_undecided_says_how_many_seeds_would_do() -> None:
    found = difference([0.0, 0.0, 0.0], [1.0, -0.5, 1.0])  # 0.5 +- 0.5
    assert not found.decided
    assert found.above == 2
    assert found.needed is not None
    deviation = math.sqrt(0.75)
    assert chance(0.5, deviation, found.needed) >= 0.8 > chance(0.5, deviation, found.needed - 1)
    drawn = np.random.default_rng(0).normal(0.5, deviation, (4000, found.needed))
    means, errors = drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(found.needed)
    assert np.mean(means > critical(found.needed) * errors) == pytest.approx(0.8, abs=0.03)
    assert difference([0.0, 0.0], [1.0, -0.999]).needed is None


def test_one_seed_decides_nothing() -> None:
    found = difference([1.0], [2.0])
    assert (found.mean, found.error, found.decided, found.needed) == (1.0, None, False, None)
    with pytest.raises(BadInput, match="the same seeds on both sides, not 1 and 2"):
        difference([1.0], [1.0, 2.0])


def test_the_critical_value_is_students() -> None:
    assert critical(2) == pytest.approx(12.706, abs=1e-3)
    assert critical(3) == pytest.approx(4.303, abs=1e-3)
    assert critical(100) == pytest.approx(1.984, abs=1e-3)


def test_the_table() -> None:
    rows = [
        {"name": name, "seed": seed, "seconds": 1.0, "psnr": psnr, "codebook_usage": 0.5, **more}
        for name, seed, psnr, more in (
            (BASE, 0, 20.0, {"loss": 1.0}),
            ("a", 0, 20.5, {"loss": 1.3}),
            (BASE, 1, 21.0, {"loss": 1.0}),
            ("a", 1, 21.5, {"loss": 0.95, "own": 3.0}),
        )
    ]
    lines = verdict_table(rows).splitlines()[2:]
    assert lines == [
        "| a | psnr | +0.5 dB ± 0 dB | 2 of 2 | higher |",
        "| a | codebook usage | +0.0 % ± 0.0 % | 0 of 2 | undecided: both are equal |",
        "| a | loss | +0.125 ± 0.175 | 1 of 2 | undecided: 33 seeds would do |",
    ]
    assert verdict_table(rows[:2]) == ""


def test_seeds_that_cancel_out_are_said_so() -> None:
    rows = [
        {"name": name, "seed": seed, "seconds": 1.0, "loss": loss}
        for name, seed, loss in ((BASE, 0, 1.0), ("a", 0, 2.0), (BASE, 1, 1.0), ("a", 1, 0.0))
    ]
    assert "the seeds cancel out" in verdict_table(rows)


def test_the_table_compares_the_seeds_that_both_have() -> None:
    """The base's second seed is far from its first; the idea has the first only."""
    rows = [
        {"name": name, "seed": seed, "seconds": 1.0, "psnr": psnr}
        for name, seed, psnr in ((BASE, 0, 10.0), (BASE, 1, 20.0), ("a", 0, 11.0))
    ]
    assert "| psnr | 15 dB ± 7.071 dB | 11 dB (+1 dB) |" in table(rows)
    assert "| psnr | 20 dB | 11 dB |" in table(rows[1:])  # no seed in common


def test_few_codes_are_called_a_collapse() -> None:
    """Few in themselves, and far fewer than the base's: a base that has collapsed itself says nothing of an idea."""
    usage = {(BASE, 0): 0.6, (BASE, 1): 0.05, ("a", 0): 0.004, ("a", 1): 0.04, ("b", 0): 0.2, ("c", 0): None}
    rows = [{"name": name, "seed": seed, "codebook_usage": share} for (name, seed), share in usage.items()]
    (line,) = collapsed(rows)
    assert line.startswith("- a, seed 0, uses 0.4 % of its codes: **the codes have collapsed**.")

"""CHD: the formula against a plain count, its range, and what it refuses."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.code_distance import CodeHistograms


def of(ids: torch.Tensor, codes: int = 8, sub_codes: int = 1, batch: int = 3) -> CodeHistograms:
    histograms = CodeHistograms(codes, sub_codes)
    for part in ids.split(batch):
        histograms.update(part)
    return histograms


def hellinger(a: Counter[Any], b: Counter[Any]) -> float:
    p, q = ({key: n / sum(c.values()) for key, n in c.items()} for c in (a, b))
    return (1 - sum((p[key] * q.get(key, 0)) ** 0.5 for key in p)) ** 0.5


def plain(a: torch.Tensor, b: torch.Tensor) -> float:
    codes = [Counter(int(i) for row in ids for i in row) for ids in (a, b)]
    pairs = [Counter((int(i), int(j)) for row in ids for i, j in pairwise(row)) for ids in (a, b)]
    return (hellinger(*codes) + hellinger(*pairs)) / 2


def test_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(8, (10, 5), generator=generator)
    b = torch.randint(5, (7, 5), generator=generator)
    assert of(a).distance(of(b)) == pytest.approx(plain(a, b), rel=1e-12)
    assert of(a).distance(of(b)) == of(b).distance(of(a)) == of(a, batch=10).reduce().distance(of(b))
    first, second = (torch.stack([ids, ids.flip(1)], dim=-1) for ids in (a, b))
    assert of(first, sub_codes=2).distance(of(second, sub_codes=2)) == pytest.approx(
        (plain(a, b) + plain(a.flip(1), b.flip(1))) / 2, rel=1e-12
    )


def test_its_ends() -> None:
    ids = torch.randint(1 << 20, (4, 6))  # 2^40 pairs
    assert of(ids, 1 << 20).distance(of(ids, 1 << 20)) == pytest.approx(0, abs=1e-7)
    assert of(torch.zeros(2, 4, dtype=torch.int64)).distance(of(torch.ones(2, 4, dtype=torch.int64))) == 1


def test_the_same_codes_in_another_order_differ_by_their_pairs_alone() -> None:
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    other = torch.tensor([[0, 2, 1, 3, 0, 2, 1, 3]])
    assert of(ids).distance(of(other)) == pytest.approx(plain(ids, other))
    assert 0 < of(ids).distance(of(other)) <= 0.5


def test_what_it_refuses() -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(BadInput, match="one token only"):
        of(ids[:, :1])
    with pytest.raises(BadInput, match=r"not \(8, 1\) and \(16, 1\)"):
        of(ids).distance(of(ids, 16))
    with pytest.raises(BadInput, match="CHD of no tokens"):
        of(ids).distance(CodeHistograms(8))

"""Compiled decoding: the same tokens, or one sentence if there is no compiler."""

from dataclasses import replace

import pytest
import torch

from alitok.common.compiler import has_compiler
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.sampling import loop as module
from alitok.sampling.generate import Sampler


@pytest.fixture(scope="module")
def small() -> Generator:
    torch.manual_seed(0)
    generator = Generator(64, 5, 3, (4, 4), width=64, depth=3, heads=4)
    torch.nn.init.normal_(generator.output.weight, std=0.3)
    return generator.eval()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_draws_the_same_tokens(small: Generator, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_compiler():
        with pytest.raises(BadInput, match="needs a C\\+\\+ compiler"):
            Sampler(small, Draw(precision=precision, compiled=True))
        return
    monkeypatch.setitem(module.LAYOUTS, "cpu", 2)
    for batch, scale, schedule in ((3, 0.0, "linear"), (5, 3.0, "power-cosine"), (2, 3.0, "softcfg")):
        labels, draw = torch.arange(batch) % 5, Draw(scale, schedule=schedule, seed=batch, precision=precision)
        compiled, plain = (Sampler(small, replace(draw, compiled=choice)).sample(labels) for choice in (True, False))
        equal = (compiled == plain).float()
        # in bfloat16 only the first tokens: where one token differs, all that follow may
        assert equal.all() if precision == "float32" else equal[:, :4].mean() > 0.8


def test_without_a_compiler_it_says_so(small: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="needs a C\\+\\+ compiler"):
        Sampler(small, Draw(compiled=True))

"""Windows draw the ids that one token after another gives, in fewer passes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.models.generator import Generator
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import Branch, PowerCosine

SIZE: dict[str, Any] = {"num_classes": 3, "num_prefix": 4, "grid": (4, 4), "width": 32, "depth": 2, "heads": 2}
LABELS = torch.tensor([0, 1, 2, 3, 1])
INDICES = [4, 0, 9, 2, 7]


def made(kind: str = "plain", sharpness: float = 4.0) -> Generator:
    """A random generator whose law is sharp enough for some drafts to be right."""
    torch.manual_seed(1)
    generator = (
        SubCodeGenerator(codebook_size=16, sub_codes=3, **SIZE)
        if kind == "sub-codes"
        else Generator(codebook_size=16, **SIZE)
    )
    nn.init.normal_(generator.output.weight, std=sharpness * generator.output.in_features**-0.5)
    return generator.eval()


def sampled(generator: Generator, window: int, **draw: Any) -> Tensor:
    return Sampler(generator, Draw(window=window, seed=5, **draw)).sample(LABELS, INDICES)


@pytest.mark.parametrize("kind", ["plain", "sub-codes"])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("window", [2, 5, 8, 20, 99])
def test_ids_are_those_of_one_token_after_another(kind: str, guidance: float, window: int) -> None:
    generator = made(kind)
    assert torch.equal(sampled(generator, window, guidance=guidance), sampled(generator, 1, guidance=guidance))


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="shown for processors with AVX2 or AVX-512"
)
@pytest.mark.parametrize(
    ("kernels", "guidance", "width", "heads"),
    [
        *(("", 0.0, 128, 2), ("", 5.0, 128, 2), ("decode=turned", 5.0, 128, 2), ("linear=turned", 5.0, 128, 2)),
        *(("", 0.0, 96, 4), ("decode=turned", 0.0, 64, 4)),
    ],
)
def test_rounding_depends_neither_on_the_window_nor_on_the_batch(
    kernels: str, guidance: float, width: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 4,096 codes a draw is often within a rounding error of the edge between two tokens."""
    monkeypatch.setenv("ALITOK_KERNELS", kernels)
    torch.manual_seed(1)
    generator = Generator(codebook_size=4096, **{**SIZE, "grid": (10, 10), "width": width, "heads": heads})
    nn.init.normal_(generator.output.weight, std=6 * width**-0.5)
    labels, numbers = torch.arange(16) % 4, list(range(16))

    def ids(window: int, batch: int) -> Tensor:
        sampler = Sampler(generator.eval(), Draw(window=window, seed=5, guidance=guidance))
        parts = [slice(start, start + batch) for start in range(0, 16, batch)]
        return torch.cat([sampler.sample(labels[part], numbers[part]) for part in parts])

    expected = ids(1, 16)
    for window, batch in ((8, 16), (3, 7), (1, 1)):
        different = (ids(window, batch) != expected).any(1).sum()
        assert different == 0, f"window {window}, batch {batch}: {different} of 16 images differ"


@pytest.mark.parametrize(
    "draw", [{"temperature": 0.6}, {"keep": 7}, {"keep": 1}, {"schedule": "linear", "guidance": 2.0}]
)
def test_whatever_decides_the_draw(draw: dict[str, Any]) -> None:
    generator = made()
    assert torch.equal(sampled(generator, 6, **draw), sampled(generator, 1, **draw))


@pytest.mark.parametrize(("heads", "least"), [(2, 16), (4, 20)])
def test_a_cache_is_long_enough_for_sums_of_one_kind(heads: int, least: int) -> None:
    """In the window's cache as in the other, also if only a few tokens are drawn: 16 channels a head need 25, of 20."""
    torch.manual_seed(1)
    generator = Generator(codebook_size=16, **{**SIZE, "width": 64, "heads": heads}).eval()
    for window in (1, 3):
        sampler = Sampler(generator, Draw(window=window, keep=3))
        sampler.sample(LABELS, INDICES)
        loop = sampler.windows if window > 1 else sampler.loop
        assert loop is not None
        assert loop.lanes[sampler.generator].cache.length == least


def test_fewer_passes_and_counts_of_what_was_right() -> None:
    generator = made(sharpness=8.0)
    sampler = Sampler(generator, Draw(window=8, seed=5))
    sampler.sample(LABELS, INDICES)
    loop = sampler.windows
    assert loop is not None
    assert loop.passes < generator.num_tokens
    assert ((loop.accepted >= 0) & (loop.accepted <= loop.tried)).all()
    assert 0 < int(loop.accepted.sum()) < int(loop.tried.sum())
    single = Sampler(generator, Draw(window=8, seed=5))
    single.sample(LABELS[:1], INDICES[:1])
    assert single.windows is not None
    passes = single.windows.passes
    # every pass but the last tries a draft at the first place that it draws, and draws one token more than were right
    assert int(single.windows.accepted.sum()) + passes >= generator.num_tokens


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_finished_row_takes_the_next_image(rows: int) -> None:
    generator = made()
    expected = sampled(generator, 1, guidance=2.0)
    sampler = Sampler(generator, Draw(window=4, seed=5, guidance=2.0))
    steps: list[int] = []
    for _ in range(2):  # the second time in the same buffers
        pairs = zip(INDICES, LABELS.tolist(), strict=True)
        found = dict(sampler.stream(pairs, rows, steps.append))
        assert torch.equal(torch.stack([found[number] for number in range(5)]), expected)
    assert len(steps) == 2 * (5 * generator.num_tokens // rows)
    assert list(sampler.stream([], 2)) == []


def test_a_branch_of_another_network_with_a_condition_of_its_own() -> None:
    generator, other = made(), made(sharpness=2.0)
    torch.manual_seed(2)
    condition = torch.randn(5, generator.num_tokens, 32)

    class Pair(PowerCosine):
        def branches(self, own: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
            rows = torch.stack([condition[INDICES.index(index)] for index in indices])
            return [Branch(labels=labels), Branch(labels=labels, generator=other, condition=rows)]

    one, many = (
        Sampler(generator, Draw(seed=5, window=window), Pair(2.0)).sample(LABELS, INDICES) for window in (1, 6)
    )
    assert torch.equal(one, many)


def test_given_tokens_are_drawn_one_after_another() -> None:
    generator = made()
    given = torch.full((5, 2), 3)
    one, many = (Sampler(generator, Draw(window=window)).sample(LABELS, given=given) for window in (1, 4))
    assert torch.equal(one, many)


def test_more_rows_than_images() -> None:
    generator = made()
    pairs = list(zip(INDICES, LABELS.tolist(), strict=True))[:2]
    found = dict(Sampler(generator, Draw(window=4, seed=5)).stream(pairs, 5))
    assert torch.equal(torch.stack([found[0], found[1]]), sampled(generator, 1)[:2])


def test_an_image_with_broken_numbers_spoils_no_other() -> None:
    generator = made()
    sampler = Sampler(generator, Draw(window=4, seed=5))
    pairs = list(zip(INDICES, LABELS.tolist(), strict=True))
    dict(sampler.stream(pairs[:1], 1))
    assert sampler.windows is not None
    with torch.inference_mode():
        for lane in sampler.windows.lanes.values():
            lane.cache.keys.fill_(torch.nan)
            lane.cache.values.fill_(torch.nan)
    found = dict(sampler.stream(pairs, 1))
    assert torch.equal(torch.stack([found[number] for number in range(5)]), sampled(generator, 1))


def test_refusals() -> None:
    with pytest.raises(BadInput, match=r"labels must lie in 0\.\.3"):
        list(Sampler(made(), Draw(window=4)).stream([(0, -1)], 1))
    with pytest.raises(BadInput, match="SoftCFG needs the final tokens before a place, and a window reads drafts"):
        sampled(made(), 4, schedule="softcfg", guidance=2.0)
    with pytest.raises(BadInput, match="window must be at least 1"):
        Draw(window=0)


def test_the_window_is_in_the_record_only_if_it_is_one() -> None:
    assert "window" not in Draw().record()
    assert Draw(window=4).record()["window"] == 4
    assert Draw.of(Draw(window=4).record()) == Draw(window=4)

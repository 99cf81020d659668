"""Guidance away from a swapped past, and by a weaker generator."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.artifacts.folder import save_artifact
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.ideas.autoguidance import WeakerGenerator
from alitok.ideas.vpg import BadPrefix, swapped_places
from alitok.models.generator import Generator
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import PowerCosine

SHAPE: dict[str, Any] = {"num_classes": 5, "num_prefix": 3, "grid": [3, 3], "width": 32, "depth": 2, "heads": 2}
BLOCK = {"class_path": "alitok.models.generator.Generator", "init_args": {"codebook_size": 16, **SHAPE, "dropout": 0.0}}
LABELS = torch.arange(4)


def generator(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = Generator(16, **SHAPE).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model


def test_places_are_swapped_within_their_kind() -> None:
    rows = torch.stack([swapped_places(40, 8, 0.3, 0, index) for index in range(2000)])
    own = torch.arange(40)
    assert (rows <= own).all()
    assert (rows[:, 0] == 0).all()  # the label's
    assert ((rows[:, 1:9] >= 1) & (rows[:, 1:9] <= 8)).all()
    assert (rows[:, 9:] >= 9).all()
    assert torch.equal(rows.gather(1, rows), rows)  # a source keeps its own
    swapped = (rows != own).float().mean(0)
    assert swapped[[0, 1, 9]].eq(0).all()
    torch.testing.assert_close(swapped[[2, 8, 10, 39]], torch.full((4,), 0.3), atol=0.04, rtol=0)
    assert set(rows[:, 4].tolist()) == {1, 2, 3, 4}
    assert torch.equal(rows[7], swapped_places(40, 8, 0.3, 0, 7))
    assert not torch.equal(rows[7], swapped_places(40, 8, 0.3, 1, 7))


def test_without_strength_or_swaps_it_is_plain_guidance() -> None:
    model = generator()
    expected = generate(model, LABELS, PowerCosine(2.0), seed=1)
    assert torch.equal(generate(model, LABELS, BadPrefix(2.0, strength=0.0), seed=1), expected)
    assert torch.equal(generate(model, LABELS, BadPrefix(2.0, strength=1.0, share=0.0), seed=1), expected)
    assert torch.equal(
        generate(model, LABELS, BadPrefix(1.0, strength=0.0), seed=1), generate(model, LABELS, 0.0, seed=1)
    )


def test_it_moves_the_draws_and_images_stay_their_own() -> None:
    model = generator()
    rule = BadPrefix(2.0, strength=3.0, share=0.5)
    ids = generate(model, LABELS, rule, seed=1)
    assert not torch.equal(ids, generate(model, LABELS, PowerCosine(2.0), seed=1))
    assert torch.equal(generate(model, LABELS[2:], rule, seed=1, indices=[2, 3]), ids[2:])
    assert len(rule.branches(model, LABELS, 0, range(4))) == 4
    assert len(BadPrefix(1.0).branches(model, LABELS, 0, range(4))) == 2


@torch.no_grad()
def test_the_formula() -> None:
    rule, logits = BadPrefix(3.0, 1.0, strength=0.5), list(torch.randn(4, 2, 16))
    place = torch.tensor([4])
    good, bad = (PowerCosine(3.0, 1.0).combine(part, place, 12) for part in (logits[:2], logits[2:]))
    torch.testing.assert_close(rule.combine(logits, place, 12), 1.5 * good - 0.5 * bad)


def test_the_draw_names_it() -> None:
    block = {"class_path": "alitok.ideas.vpg.BadPrefix", "init_args": {"strength": 2.0}}
    rule = Sampler(generator(), Draw(guidance=3.0, power=1.5, schedule=block)).rule
    assert rule == BadPrefix(3.0, 1.5, strength=2.0)


@pytest.mark.parametrize("words", [{"strength": -1.0}, {"share": 1.5}])
def test_bad_numbers(words: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="a strength of 0 or more and a share"):
        BadPrefix(2.0, **words)


def weaker(folder: Path, **more: Any) -> str:
    block = {**BLOCK, "init_args": BLOCK["init_args"] | more}  # type: ignore[operator]
    model = build(block)
    torch.nn.init.normal_(model.output.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    save_artifact(folder, block, model, {"kind": "generator"})
    return str(folder)


def test_guidance_by_a_weaker_generator(tmp_path: Path) -> None:
    """At a scale of 1 it is the strong one's draw; above, what a loop over both gives."""
    model, place = generator(), weaker(tmp_path / "weak", depth=1)
    plain = generate(model, LABELS, 0.0, seed=1)
    assert torch.equal(generate(model, LABELS, WeakerGenerator(1.0, checkpoint=place), seed=1), plain)
    for label in ("same", "none"):
        rule = WeakerGenerator(4.0, checkpoint=place, label=label)  # type: ignore[arg-type]
        strong, weak = rule.branches(model, LABELS, 0, range(4))
        assert strong.generator is None
        assert weak.generator is rule.branches(model, LABELS, 0, range(4))[1].generator  # read once
        assert weak.labels.tolist() == (LABELS.tolist() if label == "same" else [5] * 4)
        assert not torch.equal(generate(model, LABELS, rule, seed=1), plain)


def test_weaker_generators_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give checkpoint"):
        WeakerGenerator(2.0)
    with pytest.raises(BadInput, match="same or none, not 'any'"):
        WeakerGenerator(2.0, checkpoint="x", label="any")  # type: ignore[arg-type]
    place = weaker(tmp_path / "other", num_classes=4)
    with pytest.raises(BadInput, match="has 4 classes, the generator that is sampled 5"):
        generate(generator(), LABELS, WeakerGenerator(2.0, checkpoint=place))

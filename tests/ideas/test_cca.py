"""Contrast with a frozen reference, and distillation."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.cca import ConditionContrast
from alitok.ideas.distillation import Distillation
from alitok.models.generator import Generator
from alitok.training.generator import outputs_of

STEP = Step(0, 3, 10, 4, range(4))
CLASSES = 5


def generator(seed: int) -> Any:
    torch.manual_seed(seed)
    model = Generator(8, CLASSES, 1, (2, 2), width=32, depth=1, heads=2, dropout=0.0)
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model.eval()


def seen(dropped: tuple[int, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch, and the outputs of two generators for it."""
    ids, labels = torch.randint(8, (4, 5), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 4])
    read = {"ids": ids, "inputs": ids, "order": None, "step": None}
    given = labels.clone()
    given[list(dropped)] = CLASSES
    outputs = outputs_of(generator(0), read, False, given)
    return {"tokens": ids, "label": labels}, outputs | {"reference": outputs_of(generator(1), read, False, given)}


def log_p(outputs: dict[str, Any], image: int) -> float:
    logs = outputs["logits"][image].log_softmax(-1)
    return sum(float(logs[place, token]) for place, token in enumerate(outputs["targets"][image].tolist()))


@torch.no_grad()
@pytest.mark.parametrize("dropped", [(), (1, 3)])
@pytest.mark.parametrize("share", [0.5, 300.0])
def test_the_formula(dropped: tuple[int, ...], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, outputs = seen(dropped)
    asked: list[torch.Tensor] = []
    again = outputs["with_labels"]
    outputs["with_labels"] = lambda labels: (asked.append(labels), again(labels))[1]
    value = float(ConditionContrast(CLASSES, beta=0.1, share=share)(batch, outputs, STEP))
    (other,) = asked
    assert not (other == batch["label"]).any()
    assert int(other.max()) < CLASSES
    negative, reference = again(other), outputs["reference"]["with_labels"](other)
    total = 0.0
    for image in range(4):
        ratio = log_p(outputs, image) - log_p(outputs["reference"], image)
        total += math.log1p(math.exp(-0.1 * ratio))
        if image not in dropped:
            ratio = log_p(negative, image) - log_p(reference, image)
            total += share * math.log1p(math.exp(0.1 * ratio))
    assert value == pytest.approx(total / 4 / max(share, 1), rel=1e-4)


@torch.no_grad()
def test_the_negative_class_depends_on_the_place_alone() -> None:
    """Every other class occurs, and a part of the batch gets what the whole gets."""
    term = ConditionContrast(CLASSES, beta=0.1)
    drawn: list[torch.Tensor] = []

    def note(labels: torch.Tensor) -> dict[str, Any]:
        drawn.append(labels)
        return outputs(len(labels))

    def outputs(count: int) -> dict[str, Any]:
        nats = {"nats": torch.zeros(count, 5), "targets": torch.zeros(count, 5), "labels": torch.zeros(count).long()}
        return nats | {"with_labels": note, "reference": nats | {"with_labels": lambda _: nats}}

    for places in (range(200), range(50, 60)):
        labels = torch.zeros(len(places)).long()
        term({"label": labels}, outputs(len(places)), Step(0, 0, 10, 200, places))
    whole, part = drawn
    assert set(whole.tolist()) == {1, 2, 3, 4}
    assert torch.equal(whole[50:60], part)


@torch.no_grad()
def test_distillation_is_the_divergence() -> None:
    batch, outputs = seen()
    ours, theirs = (part["logits"].double().softmax(-1) for part in (outputs, outputs["reference"]))
    expected = (theirs * (theirs / ours).log()).sum(-1).mean()
    assert float(Distillation()(batch, outputs)) == pytest.approx(float(expected), rel=1e-4)
    same = outputs | {"reference": outputs}
    assert float(Distillation()(batch, same)) == pytest.approx(0, abs=1e-6)


def test_beta_follows_the_number_of_tokens() -> None:
    for given, beta in ((None, 11.52 / 5), (0.3, 0.3)):
        term = ConditionContrast(CLASSES, given)
        term.attach(generator(0))
        assert term.beta == beta


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="not 1, None and 1000"):
        ConditionContrast(1)
    batch, outputs = seen()
    with pytest.raises(BadInput, match="a term of training only"):
        ConditionContrast(CLASSES)(batch, outputs, None)
    del outputs["logits"]
    with pytest.raises(BadInput, match="both generators need a head"):
        Distillation()(batch, outputs)


def test_partial_has_no_cycle() -> None:
    """Else the outputs would live until the garbage collector comes."""
    _, outputs = seen()
    assert isinstance(outputs["with_labels"], partial)
    assert not any(value is outputs for value in outputs["with_labels"].args)


def test_it_refuses_generators_without_log_probabilities() -> None:
    from alitok.ideas.masked import MaskedGenerator

    model = MaskedGenerator(8, num_classes=CLASSES, num_prefix=1, grid=(2, 2), width=32, depth=1, heads=2)
    with pytest.raises(BadInput, match="which MaskedGenerator does not give"):
        ConditionContrast(CLASSES).attach(model)

"""Pixel losses, the quantizer's loss, and what every term promises."""

import pytest
import torch
from torch import nn

from alitok.common.errors import BadInput
from alitok.losses.terms import L1, MSE, LossTerm, QuantizerLoss


def test_values_by_hand() -> None:
    batch = {"image": torch.full((2, 3, 4, 4), 0.25)}
    outputs = {"image": torch.full((2, 3, 4, 4), 0.75), "quantizer_losses": {"codebook": torch.tensor(0.5)}}
    assert MSE()(batch, outputs).item() == pytest.approx(0.25)
    assert L1()(batch, outputs).item() == pytest.approx(0.5)
    outputs["quantizer_losses"]["commitment"] = torch.tensor(0.125)
    assert QuantizerLoss()(batch, outputs).item() == pytest.approx(0.625)
    nothing = QuantizerLoss()(batch, {"quantizer_losses": {}})
    assert nothing.item() == 0
    assert nothing.dtype == torch.float32


@pytest.mark.parametrize("term", [MSE(), L1()])
def test_half_precision_outputs_are_lifted(term: LossTerm) -> None:
    image = torch.rand(1, 3, 8, 8).to(torch.bfloat16)
    batch = {"image": torch.rand(1, 3, 8, 8)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = term(batch, {"image": image})
    assert under.dtype == torch.float32
    assert under == term(batch, {"image": image.float()})


def test_absent_or_unfit_outputs() -> None:
    batch = {"image": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(BadInput, match="decoder that returns an image"):
        MSE()(batch, {})
    with pytest.raises(BadInput, match=r"\(2, 3, 4, 4\).*\(2, 3, 8, 8\)"):
        L1()(batch, {"image": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(BadInput, match="tokenizer with a quantizer"):
        QuantizerLoss()(batch, {"quantizer_losses": None})


def test_own_term_needs_compute_only() -> None:
    class Brightness(LossTerm):
        def compute(self, batch, outputs, step):
            return (batch["image"].mean() - outputs["image"].mean()).abs()

    term = Brightness()
    term.check()
    term.setup("cpu")
    assert term({"image": torch.ones(1, 3, 2, 2)}, {"image": torch.zeros(1, 3, 2, 2)}).item() == 1
    module = nn.Module()
    module.term = term
    assert not module.state_dict()
    with pytest.raises(NotImplementedError, match="must define compute"):
        LossTerm()({"image": torch.ones(1, 3, 2, 2)}, {})

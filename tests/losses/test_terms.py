"""What every loss term says when an idea's own one is mistaken."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.losses.terms import LossTerm

BATCH = {"image": torch.rand(2, 3, 4, 4)}


class Latent(LossTerm):
    def compute(self, batch: Any, outputs: Any, step: Any) -> Tensor:
        return outputs["latent"].square().mean()


class Whole(LossTerm):
    def compute(self, batch: Any, outputs: Any, step: Any) -> Tensor:
        return batch["image"].mean(dim=(1, 2, 3))


class Own(LossTerm):
    def compute(self, batch: Any, outputs: Any, step: Any) -> Tensor:
        return {"a": torch.ones(())}["latents"]


def test_an_output_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BadInput, match="Latent reads 'latent', which is not there; outputs are ids, latents"):
        Latent()(BATCH, {"latents": torch.zeros(1), "ids": torch.zeros(1)})


def test_a_fault_of_the_term_itself_stays_what_it_is() -> None:
    with pytest.raises(KeyError):
        Own()(BATCH, {"latents": torch.zeros(1)})


def test_a_term_is_a_scalar() -> None:
    with pytest.raises(ValueError, match=r"Whole.compute must give a scalar, not a tensor of shape \(2,\)"):
        Whole()(BATCH, {})

"""AdamW and its parameter groups."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    betas: tuple[float, float],
    decays: Callable[[str], bool] = lambda name: True,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.AdamW:
    """AdamW whose learning rate is set at every step by the schedule.

    Args:
        parameters: (name, parameter) pairs.
        weight_decay: of the parameters that decay.
        betas: of the moments.
        decays: whether the parameter of that name decays; by default all do.
        lr_factor: by which the schedule's learning rate is multiplied for the parameter of that name.
    """
    groups: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in parameters:
        groups[decays(name), lr_factor(name)].append((name, parameter))
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": weight_decay if decayed else 0.0, "lr_factor": factor}
            for (decayed, factor), members in groups.items()
        ],
        lr=0.0,
        betas=(betas[0], betas[1]),
        fused=True,
    )


def generator_decays(name: str) -> bool:
    """The generator's recipe: weights of qkv, proj, w1, w2, w3 and of the output head; no embedding, norm or bias."""
    return name.endswith((".qkv.weight", ".proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "output.weight"))

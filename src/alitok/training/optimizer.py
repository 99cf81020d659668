"""AdamW, its parameter groups, and its state by name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common import distributed
from alitok.common.errors import BadInput
from alitok.training.parallel import is_sharded, like, whole_tensor


class AdamW(torch.optim.AdamW):
    """AdamW whose state dict is by parameter name and holds whole tensors, whatever the strategy.

    So a checkpoint written by one process, by DDP or by FSDP2 loads under any other. The groups and their settings are
    those of the configuration and are not stored.
    """

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of every parameter that this optimizer moves."""
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)

    def state_dict(self) -> dict[str, Any]:
        """{"state": {name: {"step", "exp_avg", "exp_avg_sq"}}}; shards on rank 0 only, but all ranks must call it."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.named():
            if parameter in self.state:
                entries = {key: whole_tensor(value) for key, value in self.state[parameter].items()}
                if not is_sharded(parameter) or distributed.rank() == 0:
                    state[name] = entries
        return {"state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes on a state dict of this form.

        Raises:
            BadInput: it has state for a parameter that does not train here.
        """
        parameters = dict(self.named())
        for name in state_dict["state"]:
            if name not in parameters:
                raise BadInput(f"The checkpoint's optimizer moves {name}, which does not train in this configuration.")
        self.state.clear()
        for name, entries in state_dict["state"].items():
            parameter = parameters[name]
            self.state[parameter] = {key: like(value, parameter) for key, value in entries.items()}


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    betas: tuple[float, float],
    decays: Callable[[str], bool] = lambda name: True,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> AdamW:
    """AdamW whose learning rate is set at every step by the schedule.

    Args:
        parameters: (name, parameter) pairs.
        weight_decay: of the parameters that decay.
        betas: of the moments.
        decays: whether the parameter of that name decays; by default all do.
        lr_factor: by which the schedule's learning rate is multiplied for the parameter of that name.
    """
    groups: dict[tuple[bool, float, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in parameters:
        # the fused kernel takes shards or whole tensors, not both at once
        groups[decays(name), lr_factor(name), is_sharded(parameter)].append((name, parameter))
    return AdamW(
        [
            {"params": members, "weight_decay": weight_decay if decayed else 0.0, "lr_factor": factor}
            for (decayed, factor, _), members in groups.items()
        ],
        lr=0.0,
        betas=(betas[0], betas[1]),
        fused=True,
    )


def generator_decays(name: str) -> bool:
    """The generator's recipe: weights of qkv, proj, w1, w2, w3 and of the output head; no embedding, norm or bias."""
    return name.endswith((".qkv.weight", ".proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "output.weight"))

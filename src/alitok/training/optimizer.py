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
    """AdamW whose state dict is by parameter name and has whole tensors under every strategy.

    A checkpoint from one process, DDP or FSDP2 therefore loads under any of them. Groups and their settings come from
    the configuration and are not stored.
    """

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of every parameter of this optimizer."""
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)

    def state_dict(self) -> dict[str, Any]:
        """{"state": {name: {"step", "exp_avg", "exp_avg_sq"}}}. All ranks must call it; only rank 0 gets shards."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.named():
            if parameter in self.state:
                entries = {key: whole_tensor(value) for key, value in self.state[parameter].items()}
                if not is_sharded(parameter) or distributed.rank() == 0:
                    state[name] = entries
        return {"state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state dict of this form.

        Raises:
            BadInput: it has the state of a parameter that does not train here.
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
    """AdamW whose learning rate the training step sets from the schedule.

    Args:
        parameters: (name, parameter) pairs.
        weight_decay: weight decay of the parameters that decay.
        betas: decay of the moments.
        decays: name -> whether the parameter decays; by default all do.
        lr_factor: name -> factor on the schedule's learning rate.
    """
    groups: dict[tuple[bool, float, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in parameters:
        # a group of the fused kernel has shards or whole tensors, not both
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
    """Whether a parameter decays in the generator's recipe: weights of qkv, proj, w1, w2, w3 and the output head."""
    return name.endswith((".qkv.weight", ".proj.weight", ".w1.weight", ".w2.weight", ".w3.weight", "output.weight"))

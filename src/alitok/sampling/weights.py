"""Modules made ready for inference: weights in one precision and, on a CPU, in the layout that is read fastest."""

import copy
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.models.generator import Categorical
from alitok.models.seams import Head

Precision = Literal["float32", "bfloat16"]
PRECISION: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Guidance multiplies the rounding errors of logits, and norms and embeddings are a small share of what a step reads.
KEPT_IN_FLOAT32 = ("output",)
M = TypeVar("M", bound=nn.Module)


@torch.library.custom_op("alitok::blocked_linear", mutates_args=())
def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """x weight^T + bias with the weight in oneDNN's blocked layout, as one operation that compilers leave alone."""
    return _blocked_linear(x, weight, bias)


@blocked_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class Projection(nn.Module):
    """A linear layer for inference that takes any float type and returns the weights' type.

    On a CPU the weight lies in oneDNN's blocked layout: for the few rows of a decoding step this runs at the memory's
    bandwidth, two to three times faster than the layout of `nn.Linear`.

    Args:
        linear: the layer whose numbers it takes.
        dtype: of the weights.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.dtype = dtype
        self.out_features = linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        self.blocked = weight.device.type == "cpu" and has_blocked_layout(dtype)
        if self.blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        else:
            self.weight = weight.to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.blocked:
            if torch.compiler.is_compiling():
                return blocked_linear(x, self.weight, self.bias, self.out_features)
            return _blocked_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class InferenceHead(Head, Projection):
    """A categorical head for inference."""

    def __init__(self, head: Categorical, dtype: torch.dtype) -> None:
        super().__init__(head, dtype)
        self.sub_codes, self.noise_shape, self.has_logits = head.sub_codes, head.noise_shape, head.has_logits

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.sub_codes == 1 else logits.unflatten(-1, (self.sub_codes, -1))


def has_blocked_layout(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch multiply matrices of the type through oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def for_inference(module: M, precision: str = "float32", leave: tuple[str, ...] = ()) -> M:
    """A copy in eval mode whose linear layers are `Projection`s; all else stays in float32.

    The module itself stays as it is, and its later changes do not show in the copy.

    Args:
        leave: children that are not used: they keep their layers and share their weights.

    Raises:
        BadInput: an unknown precision.
    """
    if precision not in PRECISION:
        raise BadInput(f"Precision {precision!r} is unknown: choose float32 or bfloat16.")
    # What is not used or is replaced below needs no copy.
    parts = [child for name, child in module.named_modules() if name in leave or isinstance(child, nn.Linear)]
    shared = {id(tensor): tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    result = copy.deepcopy(module, shared).eval()
    for name, child in list(result.named_modules()):
        top = name.split(".")[0]
        if isinstance(child, nn.Linear) and top not in leave:
            parent = result.get_submodule(name.rpartition(".")[0])
            dtype = torch.float32 if top in KEPT_IN_FLOAT32 else PRECISION[precision]
            layer = InferenceHead(child, dtype) if isinstance(child, Categorical) else Projection(child, dtype)
            setattr(parent, name.rpartition(".")[2], layer)
    return result

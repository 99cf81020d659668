"""Prepares modules for inference: weights in one precision and, on a CPU, in the layout that is read fastest."""

import copy
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import has_bfloat16
from alitok.common.errors import BadInput
from alitok.common.kernels import linear_kernel
from alitok.models.generator import Categorical
from alitok.models.seams import Head

Precision = Literal["float32", "bfloat16"]
PRECISION: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Guidance multiplies the rounding errors of logits.
KEPT_IN_FLOAT32 = ("output",)
M = TypeVar("M", bound=nn.Module)


@torch.library.custom_op("alitok::blocked_linear", mutates_args=())
def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """x weight^T + bias with the weight in oneDNN's blocked layout, as one operation that compilers do not change."""
    return _blocked_linear(x, weight, bias)


@blocked_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class Projection(nn.Module):
    """A linear layer for inference that takes any float type and returns the weights' type.

    On a CPU the weight has oneDNN's blocked layout: for the few rows of a decoding step it runs at memory bandwidth,
    two to three times faster than the layout of `nn.Linear`. A small weight in float32 may be transposed for MKL
    instead (`common.kernels`).

    Args:
        linear: the layer whose weight and bias are copied.
        dtype: dtype of the weights.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.dtype = dtype
        self.out_features = linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        on_cpu = weight.device.type == "cpu"
        kernel = linear_kernel(4 * weight.numel(), linear.in_features)
        self.turned = on_cpu and dtype == torch.float32 and kernel == "turned"
        self.blocked = on_cpu and not self.turned and has_blocked_layout(dtype)
        # An image must depend neither on its batch nor on the window. In float32 oneDNN rounds a single row differently
        # from several, MKL the last rows if their number is no multiple of four.
        self.multiple = 1 if not on_cpu else 2 if self.blocked else 4
        if self.blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        elif self.turned:
            self.weight = weight.T.to(dtype, copy=True, memory_format=torch.contiguous_format)
        else:
            self.weight = weight.to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        rows = x.numel() // x.shape[-1]
        missing = 0 if torch.compiler.is_compiling() else -rows % self.multiple  # else each remainder compiles anew
        if not missing and not self.turned:
            return self._product(x)
        flat = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, missing))
        return self._product(flat)[:rows].view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        if self.turned:
            return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        if not self.blocked:
            return F.linear(x, self.weight, self.bias)
        if torch.compiler.is_compiling():
            return blocked_linear(x, self.weight, self.bias, self.out_features)
        return _blocked_linear(x, self.weight, self.bias)


class InferenceHead(Head, Projection):
    """A categorical head for inference."""

    def __init__(self, head: Categorical, dtype: torch.dtype) -> None:
        super().__init__(head, dtype)
        self.sub_codes, self.noise_shape, self.has_logits = head.sub_codes, head.noise_shape, head.has_logits

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.sub_codes == 1 else logits.unflatten(-1, (self.sub_codes, -1))


def has_blocked_layout(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch multiply matrices of the type with oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or has_bfloat16(torch.device("cpu"))


def for_inference(module: M, precision: str = "float32", leave: tuple[str, ...] = ()) -> M:
    """A copy in eval mode whose linear layers are `Projection`s; all else stays in float32.

    The module does not change, and its later changes do not reach the copy.

    Args:
        leave: children that are not used: they keep their layers and share their weights with the module.

    Raises:
        BadInput: an unknown precision.
    """
    if precision not in PRECISION:
        raise BadInput(f"Precision {precision!r} is unknown: choose float32 or bfloat16.")
    # Unused and replaced parts need no copy.
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

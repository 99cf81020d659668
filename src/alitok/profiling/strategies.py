"""A strategy's effect on memory: what devices divide among them, and the strategy's own buffers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alitok.models.seams import Quantizer

if TYPE_CHECKING:
    from alitok.profiling.cost import Layout


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Total bytes of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parameters_of(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def shards_of(module: Any, layout: "Layout") -> dict[int, int]:
    """Parameter's id -> number of devices that divide it, its gradient and its optimizer state."""
    whole = _replicated(module)
    divided = {id(parameter) for parameter in module.model.parameters()} - whole
    return {id(p): layout.shards if id(p) in divided else 1 for p in module.parameters()}


def _replicated(module: Any) -> set[int]:
    """Ids of the parameters that every device holds whole under every strategy."""
    quantizers = [layer for layer in module.model.modules() if isinstance(layer, Quantizer)]
    return {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}


def strategy_bytes(module: Any, layout: "Layout", precision: str) -> int:
    """Bytes that the strategy adds to the step's tensors on a device at the step's peak."""
    if layout.strategy == "ddp":
        return 0 if layout.bucket_view else bytes_of(p for p in module.model.parameters() if p.requires_grad)
    if layout.strategy == "fsdp":
        from alitok.training.parallel import blocks

        each = [parameters_of(block) for block in blocks(module.model)]
        kept = _replicated(module)
        rest = sum(p.numel() for p in module.model.parameters() if id(p) not in kept) - sum(each)
        gathered = 2 if precision == "bf16-mixed" else 4
        # Whole at the peak: the rest, one block and the next, and a block's gradient, before and while it is sent.
        return 4 * rest + max(each, default=0) * (2 * gathered + gathered + 4)
    return 0

"""Blocks with a compiled decoding step: everything except the matrix products becomes a few passes over memory.

Triton's decoding kernel, if it is chosen, stays one operation between the compiled ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.compiler import need_compiler
from alitok.sampling.cache import KernelLayer, KeyValueCache, LayerCache


def step(block: Any, x: Tensor, rope: Tensor, cache: LayerCache | KernelLayer) -> Tensor:
    """Run a block's step with its layer of the cache. Every block of a generator runs the same code."""
    return block.step(x, rope, cache, 0)


@cache
def compiled_step(static: bool) -> Callable[[Any, Tensor, Tensor, LayerCache | KernelLayer], Tensor]:
    """`step`, compiled on first use: once for one row, once for more, and again when the length first changes.

    Args:
        static: compile for each shape instead. With Triton's kernel the cache has one length.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # widths and types of a study
    return torch.compile(step, dynamic=not static, fullgraph=True)


class CompiledBlock(nn.Module):
    """Replaces a generator block when tokens are drawn.

    Raises:
        BadInput: no C++ compiler.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        need_compiler("Compiling")
        self.block = block

    def step(self, x: Tensor, rope: Tensor, cache: KeyValueCache, layer: int) -> Tensor:
        part = cache.layer(layer)
        static = isinstance(part, KernelLayer) and x.device.type == "cuda"
        return compiled_step(static)(self.block, x, rope, part)

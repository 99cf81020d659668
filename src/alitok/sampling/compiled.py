"""Blocks whose decoding step is compiled: all but the matrix products becomes a few passes over memory."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alitok.common.compiler import need_compiler
from alitok.sampling.cache import KeyValueCache


class LayerCache(NamedTuple):
    """One layer of a `KeyValueCache`, as its `layer` gives it; attention in a form that a compiler can fuse."""

    keys: Tensor
    values: Tensor
    position: Tensor
    mask: Tensor
    weights: Tensor | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `KeyValueCache.attend`, by sums in float32: compiled, one pass each over keys and values."""
        rows, heads, _, dim = query.shape
        self.keys.index_copy_(1, self.position, key.flatten(0, 1))
        self.values.index_copy_(1, self.position, value.flatten(0, 1))
        query = query.reshape(-1, 1, dim).float()
        scores = (self.keys.float() * query).sum(-1) * dim**-0.5 + self.mask[..., 0].float()
        attention = scores.softmax(-1)
        if self.weights is not None:
            attention = (attention.unflatten(0, (rows, heads)) * self.weights).flatten(0, 1)
        result = (attention[..., None] * self.values.float()).sum(1)
        return result.to(value.dtype).view(rows, heads, 1, dim)


def step(block: Any, x: Tensor, rope: Tensor, cache: LayerCache) -> Tensor:
    """A block's step against its layer of the cache. Every block of a generator runs the same code."""
    return block.step(x, rope, cache, 0)


@cache
def compiled_step() -> Callable[[Any, Tensor, Tensor, LayerCache], Tensor]:
    """`step`, compiled at its first calls for any number of rows and any length."""
    return torch.compile(step, dynamic=True, fullgraph=True)


class CompiledBlock(nn.Module):
    """Takes a generator block's place where tokens are drawn.

    Raises:
        BadInput: no C++ compiler.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        need_compiler("Compiling")
        self.block = block

    def step(self, x: Tensor, rope: Tensor, cache: KeyValueCache, layer: int) -> Tensor:
        return compiled_step()(self.block, x, rope, LayerCache(*cache.layer(layer)))

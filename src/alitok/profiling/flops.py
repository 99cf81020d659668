"""Counts FLOPs by part and precision, and the bytes of live tensors, of the operations run in a context."""

import bisect
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from alitok.models import transformer

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten._convolution, aten.convolution_backward)
UNSAFE_VIEW, VIEW = aten._unsafe_view.default, aten.view.default
DEVICE = torch.ops.prim.device.default  # what `tensor.device` dispatches: two thirds of a step's operations
ELSEWHERE = "other"
PIECE = 32 * 2**20  # glibc's allocator gives larger blocks back as soon as they are freed


class Ledger(TorchDispatchMode):
    """Counts the operations of a training step on fake tensors.

    Fake tensors have no values. When an operation asks for one, flags are false and numbers are 0.

    Attributes:
        flops: (part, precision) -> FLOPs; precision is a dtype's name, or "tf32" if a GPU rounds float32 factors.
        live: bytes of live tensors by kind; unclaimed tensors are "activations", casts of weights "cast weights".
        peak: `live` at the moment when its sum was largest.
        peak_pieces: bytes of all activations smaller than `PIECE` at that moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[tuple[str, str]] = Counter()
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.peak_pieces = 0
        self._pieces = 0
        self._total = self._most = 0
        self._booked: dict[int, tuple[str, int]] = {}  # storage -> kind, bytes
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._sharded: set[int] = set()
        self._parts = [ELSEWHERE]
        self._starts: list[int] = []  # autograd sequence numbers at which the part changed
        self._started: list[str] = []

    def claim(self, tensors: Iterable[Tensor], kind: str, shards: int = 1) -> None:
        """Book tensors under a kind, each at its size divided by `shards`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._booked:
                self._watch(storage)
            if shards > 1:
                self._sharded.add(key)
            self._book(key, kind, storage.nbytes() // shards)

    def hold(self, kind: str, size: int) -> None:
        """Book bytes without a tensor; a negative size removes them."""
        self.live[kind] += size
        self._total += size

    def claim_gradient(self, parameter: nn.Parameter, shards: int = 1) -> None:
        """Book the gradient of a parameter under "gradients" as soon as it exists."""
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: self.claim([p.grad], "gradients", shards))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count operations in this context, and their backward passes, for `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self._parts.append(name)
        self._mark()

    def leave(self) -> None:
        self._parts.pop()
        self._mark()

    def attribute(self, module: nn.Module, name: str) -> None:
        """Count operations of the module's forward, and their backward passes, for `name`."""
        module.register_forward_pre_hook(lambda *_: self.enter(name))
        module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def attributed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its operations and their backward passes counted for `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def forget(self, kind: str) -> None:
        """Stop counting what is booked under a kind."""
        for key, (own, _) in list(self._booked.items()):
            if own == kind:
                self._book(key, kind, 0)

    def restart(self) -> None:
        """Reset FLOPs and peak; live tensors stay booked."""
        self.flops.clear()
        self._most, self.peak, self.peak_pieces = self._total, dict(self.live), self._pieces

    def _mark(self) -> None:
        self._starts.append(torch.autograd._get_sequence_nr())
        self._started.append(self._parts[-1])

    def _current_part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._parts[-1]
        # In backward: the part that was running when this node was recorded.
        index = bisect.bisect_right(self._starts, node._sequence_nr()) - 1
        return self._started[index] if index >= 0 else ELSEWHERE

    def _book(self, key: int, kind: str, size: int) -> None:
        old_kind, old_size = self._booked.get(key, (kind, 0))
        self._booked[key] = (kind, size)
        self.live[old_kind] -= old_size
        self.live[kind] += size
        for sign, what, count in ((-1, old_kind, old_size), (1, kind, size)):
            if what == "activations" and count < PIECE:
                self._pieces += sign * count
        self._total += size - old_size
        if self._total > self._most:
            self._most, self.peak, self.peak_pieces = self._total, dict(self.live), self._pieces

    def _watch(self, storage: Any) -> None:
        key = storage._cdata

        def gone(_: Any) -> None:
            self._book(key, self._booked[key][0], 0)
            del self._booked[key], self._watched[key]
            self._sharded.discard(key)

        self._watched[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE:
            return args[0].fake_device
        if func is UNSAFE_VIEW:  # the same tensor, but FakeTensorMode keeps no cache of it: a tenth of the time
            func = VIEW
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense:
            return False if args[0].dtype == torch.bool else 0
        out = _bincount(*args, **kwargs) if packet is aten.bincount else func(*args, **kwargs)
        for item in tree_iter(out):
            if isinstance(item, Tensor) and item.untyped_storage()._cdata not in self._booked:
                self.claim([item], "activations")
        if packet is aten._to_copy:
            source, cast = (tensor.untyped_storage() for tensor in (args[0], out))
            if self._booked.get(source._cdata, ("", 0))[0] == "weights":
                # FSDP gathers its shards in the precision of the products, so there is nothing to cast.
                self._book(cast._cdata, "cast weights", 0 if source._cdata in self._sharded else cast.nbytes())
        formula = flop_registry.get(packet) or CPU_FORMULAS.get(packet)
        if formula is not None:
            precision = str(next(item for item in args if isinstance(item, Tensor)).dtype).removeprefix("torch.")
            backend = torch.backends.cudnn if packet in CONVOLUTIONS else torch.backends.cuda.matmul
            if precision == "float32" and backend.allow_tf32:
                precision = "tf32"
            self.flops[self._current_part(), precision] += formula(*args, **kwargs, out_val=out)
        return out


def _bincount(ids: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return torch.zeros(minlength, dtype=torch.int64)


def _flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _flash_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# torch's table has only the GPU's kernels.
CPU_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """In this context attention and dropout use a GPU's kernels, which store far less, for tensors on no GPU.

    torch cannot run a backward pass on fake GPU tensors without a GPU.
    """
    with (
        patch.object(transformer, "on_cpu", lambda x: False),
        patch.object(F, "scaled_dot_product_attention", _gpu_attention),
        patch.object(F, "dropout", _gpu_dropout),
    ):
        yield


def _gpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Flash attention in half precision without a mask, else the memory-efficient kernel."""
    if query.dtype in (torch.bfloat16, torch.float16) and attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal)[0]


def _gpu_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p else x

"""What differs between devices: the precision of products, the types they have, how tensors are copied to them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from alitok.common.errors import BadInput

log = logging.getLogger("alitok")


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Inside, a GPU rounds the factors of float32 products and convolutions to TF32's ten bits only if `tf32`."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def widest_float(device: torch.device) -> torch.dtype:
    """float64; float32 on a Mac's GPU, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device can multiply bfloat16 matrices. A processor without AVX-512 does it number by number."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def warn_of_bfloat16(device: torch.device) -> None:
    """Warns once if the device has no bfloat16 products: float32 is then hundreds of times faster."""
    if not has_bfloat16(device):
        log.warning("This processor has no products of bfloat16 matrices: float32 is hundreds of times faster here.")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to a device. Neither the host nor work already queued on a GPU waits for the copy."""
    if device.type == "cuda":  # a copy from ordinary memory makes the host wait until the queue is empty
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Fetched:
    """A tensor on its way to the host. The copy is queued at once; work queued later does not delay it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> Tensor:
        """The tensor on the CPU; waits until it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.cpu()


def pick_device(name: str) -> torch.device:
    """The device of a name, which becomes torch's current device; "auto" = a GPU if there is one, else the CPU.

    Raises:
        BadInput: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams, events and captures that name no device use the current one
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"Device {name!r} is not available here; use --device cpu or auto.") from error
    return device

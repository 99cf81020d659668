"""What differs between devices: how exact their products are, which types they have, how tensors get there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alitok.common.errors import BadInput


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Within it a GPU rounds the factors of float32 products and convolutions to TF32's ten bits, or does not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def widest_float(device: torch.device) -> torch.dtype:
    """float64; float32 on a Mac's GPU, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; neither the host nor the work already queued on a GPU waits for the copy."""
    if device.type == "cuda":  # from ordinary memory the host would wait until the queue is empty
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Fetched:
    """A tensor on its way to the host: the copy is queued at once, and work that is queued later does not delay it."""

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
    """ "auto" = a GPU where there is one; else the device of that name, which becomes the present one.

    Raises:
        BadInput: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams, events and captures that name no device take the present one
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"Device {name!r} is not available here; use --device cpu or auto.") from error
    return device

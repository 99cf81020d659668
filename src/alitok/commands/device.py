"""Where a verb computes."""

import argparse
from typing import TYPE_CHECKING

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    import torch


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """The option --device, for every verb that has one."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto (default) = a GPU where there is one"
    )


def pick_device(name: str) -> "torch.device":
    """ "auto" = a GPU where there is one; else the device of that name, which becomes the present one.

    Raises:
        BadInput: the device is not there.
    """
    import torch

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

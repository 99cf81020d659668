"""Where a verb computes."""

import torch

from alitok.common.errors import BadInput


def pick_device(name: str) -> torch.device:
    """ "auto" = a GPU where there is one; else the device of that name.

    Raises:
        BadInput: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"Device {name!r} is not available here; use --device cpu or auto.") from error
    return device

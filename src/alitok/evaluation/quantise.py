"""The one conversion from float images to bytes."""

from typing import Literal

import torch
from torch import Tensor

from alitok.common.errors import BadInput

Quantisation = Literal["truncate", "round"]


def to_uint8(images: Tensor, mode: Quantisation = "truncate") -> Tensor:
    """Clamps to [0, 1], times 255, to uint8 by truncation (as the published sample sets) or by rounding.

    Args:
        images: (...) float in [0, 1]; half precision is taken to float32 first.
        mode: the two differ by half a grey level on average, which FID sees: record which.

    Raises:
        BadInput: another mode, integer images, or an image that holds NaN or infinity.
    """
    if mode not in ("truncate", "round"):
        raise BadInput(f"Quantisation {mode!r} is unknown: choose 'truncate' or 'round'.")
    if not images.is_floating_point():
        raise BadInput(f"Images are {images.dtype}, expected float in [0, 1]: give them as the model made them.")
    if not torch.isfinite(images).all():
        raise BadInput("The images hold NaN or infinity: the model that made them is broken or overflows.")
    scaled = images.float().clamp(0, 1) * 255
    return (scaled.round() if mode == "round" else scaled).to(torch.uint8)

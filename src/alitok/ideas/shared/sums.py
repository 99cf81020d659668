"""Sums of features by code."""

import torch
from torch import Tensor

from alitok.common.devices import float32_products
from alitok.models.quantizer import BLOCK_ELEMENTS


def sums_by_code(features: Tensor, ids: Tensor, codes: int) -> Tensor:
    """features (m, D), ids (m,) -> (codes, D), the sum of the features with each id.

    Uses products, not `index_add_`, whose order of addition varies on a GPU, so that a resumed run would differ.
    """
    total = features.new_zeros(codes, features.shape[1])
    every = torch.arange(codes, device=ids.device)
    size = max(1, BLOCK_ELEMENTS // codes)
    for block, own in zip(features.split(size), ids.split(size), strict=True):
        with float32_products(tf32=False):
            total.addmm_((own == every[:, None]).to(block.dtype), block)
    return total

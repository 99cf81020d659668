"""Devices by name, and what a product of matrices is measured on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alitok.common import hardware
from alitok.common.hardware import known_gpu, matmul_rate


@pytest.mark.parametrize(
    ("full_name", "row"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_cards_by_their_drivers_names(full_name: str, row: str | None) -> None:
    found = known_gpu(full_name)
    assert (found and found.name) == row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaks_are_of_random_matrices(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[torch.Tensor] = []

    def best(product: Callable[[], Any], device: torch.device, seconds: float) -> float:
        products.append(product())
        return 2.0

    monkeypatch.setattr(hardware, "best", best)
    assert matmul_rate(32, dtype, torch.device("cpu"), 0.0) == 32**3
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
    rate = matmul_rate(512, dtype, torch.device("cpu"), 0.0)  # where products are emulated, large ones take minutes
    assert rate == (128**3 if dtype == torch.bfloat16 else 512**3)
    assert products[0].dtype == dtype
    assert products[0].float().std() > 1

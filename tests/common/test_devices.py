"""What differs between devices, seen without them."""

from typing import Any

import pytest
import torch

from alitok.common import devices
from alitok.common.devices import float32_products, has_bfloat16, send, widest_float


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("tf32", "within"), [(True, ("high", True)), (False, ("highest", False))])
def test_tf32_within_and_as_it_was_afterwards(tf32: bool, within: tuple[str, bool]) -> None:
    before = flags()
    with float32_products(tf32):
        assert flags() == within
    assert flags() == before
    with pytest.raises(ZeroDivisionError), float32_products(tf32):
        raise ZeroDivisionError
    assert flags() == before
    with float32_products(not tf32), float32_products(tf32):
        assert flags() == within
    assert flags() == before


def test_a_mac_has_no_float64() -> None:
    types = {name: widest_float(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert types == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32}


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_what_is_sent_to_a_gpu_is_pinned_and_nothing_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        calls.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    send(torch.zeros(2), torch.device(name))
    assert calls == [*(["pinned"] if name == "cuda" else []), (name, True)]


def test_the_processor_is_asked_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(torch.device("cpu"))


def test_it_warns_once_where_float32_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.type != "cpu")
    devices.warn_of_bfloat16.cache_clear()
    for name in ("cuda", "cpu", "cpu"):
        devices.warn_of_bfloat16(torch.device(name))
    devices.warn_of_bfloat16.cache_clear()
    assert [record.message for record in caplog.records] == [
        "This processor has no products of bfloat16 matrices: float32 is hundreds of times faster here."
    ]

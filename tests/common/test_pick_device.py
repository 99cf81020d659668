"""--device: what a verb computes on becomes the present device, and the trainer's."""

from typing import Any

import pytest
import torch

from alitok.common.devices import pick_device
from alitok.common.errors import BadInput
from alitok.profiling import bench_training
from alitok.profiling.bench_machine import Machine, Options


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", [1]), ("cuda:0", [0]), ("cuda", []), ("cpu", [])])
def test_a_gpu_by_its_number_becomes_the_present_one(
    name: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert pick_device(name) == torch.device(name)
    assert chosen == expected


@pytest.mark.parametrize("name", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("what is asked for here is refused only on a machine without a GPU, and this one has one")
    with pytest.raises(BadInput, match="is not available here"):
        pick_device(name)


@pytest.mark.parametrize(("name", "devices"), [("cuda:1", [1]), ("cuda", [0]), ("cpu", 1)])
def test_the_benchmark_trains_on_that_device(name: str, devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(torch.device(name), 1.0, 1.0, 1.0)
    config = bench_training.training_config(Options(machine, "demo", (), (2,), ()), "generator", None, "float32", 2)
    given: dict[str, Any] = {}

    def trainer(steps: int, **arguments: Any) -> None:
        given.update(arguments)
        raise InterruptedError

    monkeypatch.setattr(bench_training, "bare_trainer", trainer)
    with pytest.raises(InterruptedError):
        bench_training.step_seconds(config, machine.device)
    assert given["devices"] == devices

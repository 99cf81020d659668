"""CUDA graphs of a step, seen through stand-ins of torch.cuda."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from alitok.sampling.graphs import Graphs

DEVICE = torch.device("cuda", 1)


class Stream:
    def __init__(self, device: torch.device, log: list[Any], name: str) -> None:
        self.device, self.log, self.name = device, log, name

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done on the GPU, in order."""
    log: list[Any] = []

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def on(stream: Stream) -> Any:
        log.append(f"on {stream.name}")
        yield
        log.append("off")

    @contextmanager
    def capture(graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Any:
        log.append(("capture", pool, stream.name, stream.device, capture_error_mode))
        yield
        log.append("captured")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(device, log, "own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, log, f"present of {device}"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", iter(["pool", "another"]).__next__)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return log


def test_one_stream_of_its_device_one_pool_and_a_capture_of_its_own_thread(log: list[Any]) -> None:
    graphs = Graphs(DEVICE)

    def step() -> None:
        log.append("step")

    first = ["own waits for present of cuda:1", "on own", "step", "off", "present of cuda:1 waits for own"]
    second = [("capture", "pool", "own", DEVICE, "thread_local"), "step", "captured", "replay"]
    for form in (8, 16):
        for expected in (first, second, ["replay"]):
            log.clear()
            graphs.run(form, step)
            assert log == expected
    log.clear()
    graphs.run(8, step)
    assert log == ["replay"]

"""One step as CUDA graphs."""

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphs:
    """Graphs of a step on one GPU, one for each form that its buffers take.

    All share their memory, as only one runs at a time and none leaves anything there for another.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.graphs: dict[Hashable, Any] = {}

    def run(self, form: Hashable, step: Callable[[], None]) -> None:
        """Runs the step: as it is the first time in this form, captured the second, from the graph from then on."""
        if form not in self.graphs:
            self.graphs[form] = None
            present = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(present)
            with torch.cuda.stream(self.stream):  # where it is captured, so that libraries set up for this stream
                step()
            present.wait_stream(self.stream)
            return
        if self.graphs[form] is None:
            graph = torch.cuda.CUDAGraph()
            # "thread_local": a loader's thread that pins memory meanwhile would end a "global" capture, and itself
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                step()
            self.graphs[form] = graph
        self.graphs[form].replay()

"""One step as CUDA graphs."""

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphs:
    """Graphs of a step on one GPU, one for each form of its buffers.

    All share one memory pool: only one runs at a time, and none reads what another left there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.graphs: dict[Hashable, Any] = {}

    def run(self, form: Hashable, step: Callable[[], None]) -> None:
        """Run the step: directly the first time in this form, captured the second time, from the graph afterward."""
        if form not in self.graphs:
            self.graphs[form] = None
            present = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(present)
            with torch.cuda.stream(self.stream):  # the stream of the capture, so that libraries set up for it
                step()
            present.wait_stream(self.stream)
            return
        if self.graphs[form] is None:
            graph = torch.cuda.CUDAGraph()
            # "thread_local": a loader's thread that pins memory meanwhile would break a "global" capture, and itself
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                step()
            self.graphs[form] = graph
        self.graphs[form].replay()

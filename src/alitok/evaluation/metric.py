"""The interface of every metric."""

from typing import Any, Protocol


class Metric(Protocol):
    """Accumulates batches on its own process; `compute` gives the same numbers on every process.

    `compute` is a collective: every process calls it, even one that saw no batch. It changes no state.
    """

    def update(self, *args: Any, **kwargs: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...

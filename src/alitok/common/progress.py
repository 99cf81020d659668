"""Progress bars of long work, on the first process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, track

from alitok.common.distributed import rank


def bar(title: str, total: int | None = None) -> Any:
    """A function that shows a progress bar while its argument is iterated, on the first process.

    Args:
        total: items; None = the argument's length.
    """
    return lambda reader: track(
        reader,
        title,
        total=len(reader) if total is None else total,
        disable=rank() > 0,
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the first process; yields a function that advances it by a count."""
    with Progress(console=Console(stderr=True), disable=rank() > 0) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)

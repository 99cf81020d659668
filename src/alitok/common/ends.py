"""How a command ends from outside: SIGTERM, a closed pipe, a second command in the same folder."""

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from alitok.common.errors import BadInput

_postponed = 0
_interrupted = False


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, so that it is cleaned up after like Ctrl-C. Exit status 143."""


def _raise(number: int, frame: FrameType | None) -> None:
    if not _postponed:
        raise Terminated


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Terminated`, unless it already has a handler or this is not the main thread."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)


@contextmanager
def sigterm_postponed() -> Iterator[None]:
    """Inside, SIGTERM raises nothing: Lightning notes it and stops between two batches."""
    global _postponed
    _postponed += 1
    try:
        yield
    finally:
        _postponed -= 1


@contextmanager
def first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C calls `stop`, so that a run writes a checkpoint first. A second one interrupts."""
    global _interrupted
    _interrupted = False
    process, before = os.getpid(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        global _interrupted
        if os.getpid() != process:  # a loader's worker, which gets a terminal's Ctrl-C too and ends with its parent
            return
        _interrupted = True
        signal.signal(signal.SIGINT, before)
        print(
            "\nalitok: stopping after this step or validation; Ctrl-C again stops at once, without a checkpoint.",
            file=sys.stderr,
        )
        stop()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)


def end_of_run() -> KeyboardInterrupt:
    """What a run that stopped at a SIGTERM raises: a plain interrupt if it came from Ctrl-C, else `Terminated`."""
    return KeyboardInterrupt() if _interrupted else Terminated()


def drop_output() -> None:
    """After a BrokenPipeError, keeps Python from writing to the closed pipe again when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Locks a folder against other commands until the block or the process ends.

    Makes the folder if it does not exist, and removes it again if the block leaves it empty.

    Raises:
        BadInput: another command has locked the folder, or the folder cannot be made.
    """
    folder = Path(folder)
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"Cannot write {folder}: {error.strerror or error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BadInput(
            f"Another command is at work in {folder}; wait until it ends, stop it, or name another folder."
        ) from error
    except OSError:  # some network file systems cannot lock folders
        print(f"alitok: {folder} cannot be locked; start only one command in it at a time.", file=sys.stderr)
    try:
        yield
    finally:
        if fresh and folder.is_dir() and not any(folder.iterdir()):  # the block was refused
            folder.rmdir()
        os.close(descriptor)

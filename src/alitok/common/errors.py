"""The one exception for errors that the user can correct, and what is said of others."""

import sysconfig
import traceback
from pathlib import Path


class BadInput(Exception):
    """Wrong usage or bad input. The message is one sentence: what is wrong, where, what to do.

    The command line prints it on one line and exits with status 2. Any other exception is a bug.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's message without its period, or the error's class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def fault_of(error: BaseException) -> str:
    """What broke in somebody's own code: the error's class, its message, and the last line outside of libraries."""
    frames = list(traceback.walk_tb(error.__traceback__))
    text = " ".join(str(error).split())
    if not text and isinstance(error, NotImplementedError) and frames:  # a seam's method that a class must define
        frame = frames[-1][0]
        text = f"{type(frame.f_locals.get('self')).__name__} must define {frame.f_code.co_name}"
    own = [(frame.f_code.co_filename, line) for frame, line in frames if not _of_a_library(frame.f_code.co_filename)]
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{type(error).__name__}: {text[:300] or 'it failed'}{where}"


def _of_a_library(file: str) -> bool:
    """Whether a source file belongs to this package, to an installed one or to Python."""
    package = Path(__file__).parents[1]
    others = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in (package, *others))

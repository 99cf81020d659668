"""The one exception for errors that the user can correct."""


class BadInput(Exception):
    """Wrong usage or bad input. The message is one sentence: what is wrong, where, what to do.

    The command line prints it on one line and exits with status 2. Any other exception is a bug.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's message without its period, or the error's class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

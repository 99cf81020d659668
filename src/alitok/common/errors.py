"""The one exception for what the user can put right."""


class BadInput(Exception):
    """Wrong usage or bad input; the message is one sentence: what, where, what to do.

    The command line prints it on one line and exits with status 2. Anything else that is raised is a fault of ours.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, for a sentence of ours: its first line without the full stop, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

"""The one exception for what the user can put right."""


class BadInput(Exception):
    """Wrong usage or bad input; the message is one sentence: what, where, what to do.

    The command line prints it on one line and exits with status 2. Anything else that is raised is a fault of ours.
    """

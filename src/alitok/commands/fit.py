"""Train what a configuration describes; repeat the command to go on after an interruption."""

import argparse

from alitok.commands.lightning import TAKES_OVERRIDES, add_arguments, launch

__all__ = ["TAKES_OVERRIDES", "add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    launch("fit", args)

"""Measure the last checkpoint of a run on the validation split."""

import argparse

from alitok.commands.lightning import TAKES_OVERRIDES, add_arguments, launch

__all__ = ["TAKES_OVERRIDES", "add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    launch("validate", args)

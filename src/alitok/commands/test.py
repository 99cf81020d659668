"""Measure the last checkpoint of a run on the validation split, or on another: `--data.val_split test`."""

import argparse

from alitok.commands.lightning import TAKES_OVERRIDES, add_arguments, launch

__all__ = ["TAKES_OVERRIDES", "add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    launch("test", args)

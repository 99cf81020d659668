"""Measure the last checkpoint of a run on the validation split, or on another: `--data.val_split test`."""

import argparse

from alitok.commands import lightning
from alitok.commands.lightning import OVERRIDES, TAKES_OVERRIDES, launch

__all__ = ["TAKES_OVERRIDES", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    lightning.add_arguments(parser)
    parser.epilog = (
        f"example: alitok test -c experiments/cifar10/tokenizer-stage1.yaml --data.val_split test\n{OVERRIDES}"
    )


def run(args: argparse.Namespace) -> None:
    launch("test", args)

"""Measure the last checkpoint of a run on the validation split, or on another: `--data.val_split test`."""

import argparse

from alitok.commands.options import OVERRIDES, add_config_argument

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.epilog = (
        f"example: alitok test -c experiments/cifar10/tokenizer-stage1.yaml --data.val_split test\n{OVERRIDES}"
    )


def run(args: argparse.Namespace) -> None:
    from alitok.training.launch import start

    start("test", args.config, args.overrides)

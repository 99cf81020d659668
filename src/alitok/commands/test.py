"""Measure the last checkpoint of a run on the validation split, or on another split: `--data.val_split test`."""

import argparse

from alitok.commands.options import OVERRIDES, add_config_argument, add_print_config_argument, print_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    add_print_config_argument(parser)
    parser.epilog = (
        f"example: alitok test -c experiments/cifar10/tokenizer-stage1.yaml --data.val_split test\n{OVERRIDES}"
    )


def run(args: argparse.Namespace) -> None:
    if print_config(args):
        return
    from alitok.training.launch import start

    start("test", args.config, args.overrides)

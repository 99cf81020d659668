"""Measure the last checkpoint of a run on the validation split."""

import argparse

from alitok.commands.options import OVERRIDES, add_config_argument

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.epilog = f"example: {parser.prog} -c experiments/demo/generator.yaml\n{OVERRIDES}"


def run(args: argparse.Namespace) -> None:
    from alitok.training.launch import start

    start("validate", args.config, args.overrides)

"""Train what a configuration describes; repeat the command to continue after an interruption."""

import argparse

from alitok.commands.options import OVERRIDES, add_config_argument, add_print_config_argument, print_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    add_print_config_argument(parser)
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="continue a run although its model, data or schedule has changed",
    )
    parser.epilog = f"example: alitok fit -c experiments/demo/tokenizer-stage1.yaml --define.run runs/mine\n{OVERRIDES}"


def run(args: argparse.Namespace) -> None:
    if print_config(args):
        return
    from alitok.training.launch import start

    start("fit", args.config, args.overrides, args.allow_changes)

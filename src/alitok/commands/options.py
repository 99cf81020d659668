"""Options that several verbs share."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alitok.common.draw import Draw

OVERRIDES = "any --key value overrides the files, e.g. --data.global_batch 32 --trainer.devices 2"


def add_config_argument(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option -c, for verbs that compose a configuration."""
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        required=required,
        metavar="FILE",
        help="YAML; give several to lay one over another",
    )


def add_print_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option --print_config, for verbs that run one configuration."""
    parser.add_argument(
        "--print_config",
        "--print-config",
        action="store_true",
        help="print the configuration that files and overrides make, as YAML, and stop",
    )


def print_config(args: argparse.Namespace) -> bool:
    """Print the composed configuration if the option --print_config is given."""
    if args.print_config:
        import yaml

        from alitok.config import compose_run

        print(yaml.safe_dump(compose_run(args.config or [], args.overrides), sort_keys=False), end="")
    return bool(args.print_config)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option --device."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto (default) = a GPU if there is one"
    )


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options for drawing tokens that mostly default to the generator's card."""
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="0 = none (default: the card's)")
    parser.add_argument(
        "--power", type=float, help="exponent of power-cosine guidance and softcfg (default: the card's)"
    )
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        help="power-cosine, constant, linear, softcfg, or the class path of a Guidance (default: the card's, else"
        " power-cosine)",
    )
    parser.add_argument(
        "--sampler",
        metavar="CLASS",
        help="class path of a Reveal, for a generator that is not causal (default: the card's, else the generator's)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="logits are divided by it (default 1)"
    )


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options that decide how fast images are drawn."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the weights (default float32)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the decoding step: seconds at first, then faster (needs g++)"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=1,
        metavar="L",
        help="a pass draws up to L tokens: fewer passes; in float32 on a CPU exactly the same ids (default 1)",
    )
    parser.add_argument(
        "--draw",
        choices=("inverse", "gumbel"),
        default="inverse",
        dest="noise",
        help="inverse (default): one uniform number per token; gumbel: one Gumbel number per code, made on the device."
        " The images differ, their distribution does not",
    )
    parser.add_argument(
        "--batch",
        type=batch_size,
        metavar="N",
        help="images drawn together; auto (default) = a multiple of 64, at most 512, that fits on a GPU; 32 on a CPU",
    )
    add_device_argument(parser)


def batch_size(text: str) -> int | None:
    """Parse a number of images; None for "auto"."""
    from alitok.common.errors import BadInput

    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"--batch must be at least 1, or auto, not {text}.")
    return int(text)


def draw_of(args: argparse.Namespace, card: Mapping[str, Any]) -> "Draw":
    """The draw that the options of guidance and speed give; the generator's card fills in what they leave open."""
    from alitok.common.draw import RECOMMENDED, Draw

    names = (*RECOMMENDED, "temperature", "precision", "keep", "window", "noise")
    return Draw.chosen(card, compiled=args.compile, **{name: getattr(args, name, None) for name in names})

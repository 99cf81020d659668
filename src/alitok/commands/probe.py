"""Measure how predictable tokens are: their entropies, and the loss of a small generator after a given budget.

Any token cache is measured in the same way, so tokenizers can be compared. Compare only numbers of the same budget.
"""

import argparse
import math
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alitok.commands.options import add_device_argument
from alitok.common.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", nargs="?", metavar="CACHE", help="token cache, of any origin")
    parser.add_argument("--tokenizer", metavar="DIR", help="instead of CACHE, with --data: encode pictures first")
    parser.add_argument("--data", metavar="SPEC", help="data spec: shapes, a folder, or owner/name on the hub")
    parser.add_argument(
        "--features", action="store_true", help="with --tokenizer: also linear probes, and how stable the ids are"
    )
    parser.add_argument("--generator", metavar="DIR", help="with --features: probe this generator's features too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the record goes")
    parser.add_argument(
        "--steps", type=int, default=1000, metavar="N", help="training steps of the small generator (default 1000)"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images a step (default 64)")
    parser.add_argument(
        "--width", type=int, default=256, metavar="N", help="width of the small generator (default 256)"
    )
    parser.add_argument("--depth", type=int, default=6, metavar="N", help="its layers (default 6)")
    prefix = "prefix tokens before the square grid; all if there is no grid (default: what it leaves)"
    parser.add_argument("--prefix", type=int, metavar="K", help=prefix)
    parser.add_argument(
        "--images", type=int, default=50_000, metavar="N", help="images to learn from, at most (default 50000)"
    )
    parser.add_argument(
        "--held-out", type=int, default=2_000, metavar="N", help="images to measure on, at most (default 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and batches (default 0)")
    add_device_argument(parser)
    parser.epilog = (
        "example: alitok probe runs/demo/tokens --steps 500 --json probe.json\n"
        "         torchrun --nproc-per-node 8 -m alitok probe ... --features   shares the features"
    )


def run(args: argparse.Namespace) -> None:
    if (args.cache is None) == (args.tokenizer is None) or (args.tokenizer is None) != (args.data is None):
        raise BadInput("Give a token cache, or --tokenizer together with --data.")
    if (args.features and args.tokenizer is None) or (args.generator and not args.features):
        raise BadInput("--features reads pictures: give --tokenizer and --data; --generator belongs to --features.")
    for name in ("steps", "batch", "width", "depth", "images", "held_out"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}.")
    if args.width % 64:
        raise BadInput(f"--width must be a multiple of 64, not {args.width}.")
    if args.json:
        from alitok.common.files import check_writable

        check_writable(args.json)  # before the minutes of training
    features: dict[str, float] = {}
    if args.features:
        features = measured_features(args)
        if int(os.environ.get("RANK", "0")):
            return  # the first process trains the small generator
    with ExitStack() as stack:
        cache, held_out = args.cache, None
        if cache is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="alitok-probe-")))
            cache, held_out = encode(args, folder)
        from alitok.studies.probe import probe

        record = probe(
            cache,
            held_out,
            steps=args.steps,
            batch=args.batch,
            width=args.width,
            depth=args.depth,
            prefix=args.prefix,
            images=args.images,
            held_out=args.held_out,
            seed=args.seed,
            device=args.device,
        )
    if args.tokenizer is not None:
        record |= {"source": args.tokenizer, "data": args.data}
    record |= features
    show(record)
    if args.json:
        from alitok.common.files import write_json

        write_json(args.json, record)


def encode(args: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Write token caches of the center crops of both splits; the validation split is the held-out one."""
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.data.encoding import tokenize
    from alitok.data.found import announce
    from alitok.data.sources import open_source

    tokenizer = load_tokenizer(args.tokenizer, pick_device(args.device))
    size = tokenizer.image_size
    train = open_source(args.data, "train", size=size, count=args.images)
    val = open_source(args.data, "val", size=size, count=args.held_out)
    announce(args.data, {"train": train, "val": val})
    for name, source in (("train", train), ("val", val)):
        tokenize(tokenizer, source, folder / name, crops="center")
    return str(folder / "train"), str(folder / "val")


def measured_features(args: argparse.Namespace) -> dict[str, float]:
    """The measures of --features, on at most 10,000 training pictures; processes of `torchrun` share the work."""
    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.distributed import process_group
    from alitok.data.reading import read_all
    from alitok.data.sources import open_source
    from alitok.evaluation.ridge import LEAST
    from alitok.studies.features import measure_features

    if args.images < LEAST:
        raise BadInput(f"--features needs --images of at least {LEAST}, not {args.images}.")
    with process_group(pick_device(args.device)) as device:
        tokenizer = load_tokenizer(args.tokenizer, device)
        generator = None if args.generator is None else load_generator(args.generator, device)
        if generator is not None:
            check_pair(generator, tokenizer)
        size = tokenizer.image_size
        train = read_all(open_source(args.data, "train", size=size, count=min(args.images, 10_000)), size)
        held_out = read_all(open_source(args.data, "val", size=size, count=args.held_out), size)
        return measure_features(tokenizer, train, held_out, generator)


def show(record: dict[str, Any]) -> None:
    """Print the record as a table."""
    from rich.console import Console
    from rich.table import Table

    codes = f"{record['sub_codes']} x " if record["sub_codes"] > 1 else ""
    codes += f"{record['codebook_size']:,} codes, {record['bits_per_token']:.1f} bits"
    codes += "" if record["codebook_size_known"] else " (guessed from the highest id)"
    needed = record["nats_per_picture"] / math.log(2)
    table = Table(title=f"{record['source']}: {record['tokens']} tokens an image of {codes}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    rows = [
        ("codes in use", f"{record['codebook_usage']:.1%}"),
        ("perplexity", f"{record['codebook_perplexity']:,.0f}"),
        ("entropy of a token alone", f"{record['entropy']:.3f} nats"),
        ("  given its class", f"{record['entropy_given_class']:.3f} nats"),
        ("  given its position", f"{record['entropy_given_position']:.3f} nats"),
        (f"accuracy after {record['steps']:,} steps of {record['batch']}", f"{record['token_accuracy']:.1%}"),
        ("loss a token, held out", f"{record['token_nats']:.3f} nats"),
        ("loss a token, seen", f"{record['token_nats_train']:.3f} nats"),
        ("loss a picture", f"{record['nats_per_picture']:,.1f} nats"),
        ("  explained by class and earlier tokens", f"{record['explained_nats']:,.1f} nats"),
        ("bits a picture", f"{record['bits_per_picture']:,.0f}, {needed:,.0f} needed"),
    ]
    names = {
        "probe_encoder": "class read from the encoder's features",
        "probe_decoder": "  from the decoder's",
        "probe_generator": "  from the generator's",
        "probe_random_encoder": "  from a random encoder's",
        "ids_same_shifted": "ids that stay under a shift by a pixel",
        "ids_same_noisy": "  under noise of 2 gray levels",
    }
    rows += [(name, f"{record[key]:.1%}") for key, name in names.items() if key in record]
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for what in ("class", "position"):
        if (bias := record[f"entropy_given_{what}_bias"]) > 0.1:
            console.print(
                f"The entropy given the {what} rests on few tokens for each ({record['counted_tokens']:,} in all): its"
                f" correction is {bias:.2f} nats, and the value is no better than that."
            )
    console.print(
        f"{record['images']:,} images to learn from, {record['held_out']:,} held out; accuracy and loss hold for this"
        " budget and this small generator only."
    )

"""Measure how much small text survives a tokenizer: words are drawn, reconstructed and read by their shapes.

It needs no data, no network and no download. Compare only tokenizers of one image size, never with published numbers.
"""

import argparse
from pathlib import Path

from alitok.commands.options import add_device_argument
from alitok.common.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="DIR", required=True, help="tokenizer artifact, or owner/name on the hub"
    )
    parser.add_argument("--words", type=int, default=200, metavar="N", help="words of each letter height (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the words (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="a PNG of one word of each height, before and after"
    )
    add_device_argument(parser)
    parser.epilog = "example: alitok text-fidelity --tokenizer runs/demo/stage2/artifact --picture words.png"


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.files import check_writable, write_json
    from alitok.common.images import save_grid
    from alitok.evaluation.text import strokes, text_fidelity

    if args.words < 1:
        raise BadInput(f"--words must be at least 1, not {args.words}.")
    for path in (args.json, args.picture):
        if path is not None:
            check_writable(path)
    tokenizer = load_tokenizer(args.tokenizer, pick_device(args.device))
    strokes(tokenizer.image_size)
    found, shown = text_fidelity(tokenizer, args.words, args.seed)
    table = Table("height of letters", "words right", "letters right", "words")
    for height, row in found.items():
        shares = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("words", "letters")]
        table.add_row(f"{height} px", *shares, f"{row['counted']:,}")
    Console().print(table)
    if args.json is not None:
        settings = {"tokenizer": args.tokenizer, "words": args.words, "seed": args.seed}
        write_json(args.json, {**settings, "by_height": found})
    if args.picture is not None:
        save_grid(shown, args.picture, 2, ["word", "reconstructed"])

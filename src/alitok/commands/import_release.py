"""Turn a file of AliTok's public release (AliTok.pth, alitok_{b,l,xl}.bin, a stage-1 checkpoint) into an artifact."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the downloaded file")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="artifact folder (default: runs/release/<name of FILE>)"
    )
    parser.epilog = "example: alitok import-release AliTok.pth --out runs/release/tokenizer"


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.folder import read_card
    from alitok.artifacts.published import import_release

    out = import_release(args.file, args.out or Path("runs/release") / args.file.stem)
    card = read_card(out)
    print(f"{out}: {card['description']}; digest {card['digest'][:12]}")

"""Write an artifact as a file that the code of AliTok's public release can load."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="artifact folder, or owner/name on the Hugging Face hub")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write, e.g. AliTok.pth")
    parser.epilog = "example: alitok export-release runs/release/tokenizer --out AliTok.pth"


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.published import export_release

    print(f"Wrote {export_release(args.folder, args.out)}")

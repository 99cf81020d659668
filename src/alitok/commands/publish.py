"""Upload an artifact to the Hugging Face hub, with a model card made from its card.json and evaluation records.

Anybody can then load it by name: alitok.load_tokenizer("owner/name"). The upload is one commit, so readers see all of
it or nothing. After an interruption repeat the command: weights that the hub already has are not sent again.
The access token comes from `hf auth login` or HF_TOKEN.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="DIR", type=Path, help="artifact of a tokenizer or generator")
    parser.add_argument("name", metavar="OWNER/NAME", help="name on the hub")
    parser.add_argument("--license", metavar="ID", help="license by the hub's name: mit, apache-2.0, other, ...")
    parser.add_argument(
        "--record",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="what `alitok evaluate --json` wrote: numbers with their protocol",
    )
    parser.add_argument(
        "--grid",
        metavar="PNG",
        type=Path,
        help="picture of samples (default: the last by name in pictures/ next to DIR)",
    )
    parser.add_argument("--tokenizer", metavar="OWNER/NAME", help="where a generator's tokenizer is, for the card")
    parser.add_argument(
        "--private",
        action="store_true",
        help="make a new repository private (default: as your account makes them); an existing one stays as it is",
    )
    parser.add_argument(
        "--dry-run",
        metavar="FOLDER",
        type=Path,
        help="write all of it there and upload nothing; a FOLDER that exists must be empty, or a dry run to replace",
    )
    parser.epilog = (
        "example: alitok publish runs/demo/stage2/artifact me/shapes --license mit --dry-run published\n"
        "         alitok publish runs/demo/stage2/artifact me/shapes --license mit --record rfid.json"
    )


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.folder import read_card
    from alitok.artifacts.publishing import local_keys, prepare, upload, write
    from alitok.common.errors import BadInput

    grid = args.grid or newest_grid(args.artifact)
    if grid is not None:
        check_png(grid)
    files, text = prepare(args.artifact, args.name, args.license, args.record, grid, args.tokenizer)
    if args.license is None:
        print("alitok: no --license: people may then look at the model and not use it.")
    if keys := local_keys(files):
        print(f"alitok: paths of this machine will be public, in {', '.join(keys)}.")
    if args.tokenizer is None and read_card(args.artifact)["kind"] == "generator":
        print("alitok: no --tokenizer: the card cannot say from where to load the generator's tokenizer.")
    if args.dry_run is not None:
        if args.dry_run.resolve() == args.artifact.resolve():
            raise BadInput(f"--dry-run {args.dry_run} is the artifact itself; name another folder.")
        write(args.dry_run, files, text, grid)
        print(f"{args.dry_run}: what would be uploaded as {args.name}")
        return
    print(f"{args.name}: {upload(args.name, files, text, grid, args.private)}")


def newest_grid(artifact: Path) -> Path | None:
    """The last grid that the artifact's run wrote."""
    return max((artifact.absolute().parent / "pictures").glob("*.png"), default=None, key=lambda path: path.name)


def check_png(path: Path) -> None:
    """Raise BadInput for a file that is no PNG."""
    from alitok.common.errors import BadInput
    from alitok.data.pictures import read_file, read_picture

    content = read_file(path, str(path))
    read_picture(content, str(path))
    if not content.startswith(b"\x89PNG"):
        raise BadInput(f"{path} is no PNG; give the grid that a run or `alitok sample` wrote.")

"""`alitok describe --data`: how a data spec is understood, as a table or JSON, and pictures as training crops them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.data.found import Found
    from alitok.data.sources import Source

COLUMNS, ROWS = 8, 4  # classes and pictures of each in the grid
LISTED = 20  # classes, and damaged pictures, in the table
TRIED = 1000  # pictures of a split: seconds
DATA_OPTIONS = ("picture", "size", "image_column", "label_column", "streaming")
RUN_OPTIONS = ("config", "hardware", "images", "overrides")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a data set in place of a run")
    group.add_argument("--data", metavar="SPEC", help="data spec: shapes, a folder, or owner/name on the hub")
    group.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of some pictures, cut as training cuts them")
    group.add_argument("--size", type=int, metavar="N", help="side of these pictures in pixels (default 128)")
    group.add_argument("--image-column", metavar="NAME", help="column of a table, if its types leave a choice")
    group.add_argument("--label-column", metavar="NAME", help="likewise")
    group.add_argument("--streaming", action="store_true", help="read parquet files where they lie, without a copy")


def check_data_arguments(args: argparse.Namespace) -> None:
    """Refuses options of a run together with options of a data set, and a call without `--config` and `--data`."""
    if args.data is None:
        if args.config is None:
            raise BadInput("describe needs -c/--config FILE for a run, or --data SPEC for a data set.")
        if wrong := [name for name in DATA_OPTIONS if getattr(args, name)]:
            raise BadInput(f"{_option(wrong[0])} belongs to --data SPEC, and none is given: leave it out.")
    elif wrong := [name for name in RUN_OPTIONS if getattr(args, name)]:
        given = args.overrides[0] if wrong[0] == "overrides" else _option(wrong[0])
        raise BadInput(f"{given} describes a run and --data a data set: give one of them.")
    elif args.size is not None and args.size < 1:
        raise BadInput(f"--size must be at least 1, not {args.size}.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def describe_data(args: argparse.Namespace) -> None:
    """Prints how `--data` is understood, and writes `--picture`.

    Raises:
        BadInput: as `open_source`, or the picture cannot be written.
    """
    from alitok.data.found import Found
    from alitok.data.sources import Source, Split, open_source

    size = args.size or 128
    splits: tuple[Split, ...] = ("train", "val")
    sources: dict[str, Source] = {
        split: open_source(
            args.data,
            split,
            image_column=args.image_column,
            label_column=args.label_column,
            size=size,
            streaming=args.streaming,
        )
        for split in splits
    }
    found = Found(args.data, sources)
    tried, damaged = try_pictures([] if args.streaming or args.data == "shapes" else list(sources.values()))
    if args.json:
        import json

        print(json.dumps(found.record() | {"tried": tried, "cannot_be_read": damaged}, indent=2))
    else:
        print_table(found, tried, damaged)
    if args.picture is not None:
        save_pictures(sources["train"], args.picture, size)
        print(f"Wrote {args.picture}.", file=sys.stderr)


def try_pictures(sources: Sequence["Source"]) -> tuple[int, list[str]]:
    """Reads pictures, of each source TRIED at most, evenly spaced: their number, and a sentence for each failure."""
    from alitok.data.pictures import UnreadableImage

    tried, damaged = 0, []
    for source in sources:
        step = max(1, -(-len(source) // TRIED))
        for index in range(0, len(source), step):
            tried += 1
            try:
                source[index]
            except UnreadableImage as error:
                damaged.append(str(error))
    return tried, damaged


def print_table(found: "Found", tried: int, damaged: Sequence[str]) -> None:
    """Prints `Found.record` and the result of `try_pictures` as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from alitok.data.found import printable

    def text(value: object) -> str:
        return escape(printable(str(value)))

    record = found.record()
    table = Table(title=text(found.spec), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("layout", "", text(record["layout"]))
    for name, column in (record["columns"] or {}).items():
        table.add_row(f"{name} column", "", text(column))
    for name, count in record["splits"].items():
        table.add_row(f"images of {name}", f"{count:,}", "")
    classes = record["classes"]
    counts = list(classes.values())
    counted = f"{min(counts):,} to {max(counts):,}" if min(counts) < max(counts) else f"{counts[0]:,}"
    table.add_row("classes", f"{len(classes):,}", f"each of {counted} images of train")
    for name, count in list(classes.items())[:LISTED]:
        table.add_row("", f"{count:,}", text(name))
    if len(classes) > LISTED:
        table.add_row("", "", f"and {len(classes) - LISTED:,} more (--json lists all)")
    table.add_section()
    for note in found.passed_over:
        table.add_row("passed over or guessed", f"{note.count:,}", text(f"{note.what}: {note.why}"))
    if not found.passed_over:
        table.add_row("passed over or guessed", "", "nothing")
    if tried:
        table.add_row("cannot be read", f"{len(damaged):,}", f"of {tried:,} tried")
    for sentence in damaged[:LISTED]:
        table.add_row("", "", text(sentence))
    Console().print(table)


def save_pictures(source: "Source", path: Path, size: int) -> None:
    """Writes a PNG of the first pictures of the first classes, a column per class, as training crops them.

    A picture that cannot be read is named on stderr and replaced by the next one of its class.
    """
    import numpy as np
    import torch

    from alitok.common.images import save_grid
    from alitok.common.random import stream
    from alitok.data.pictures import UnreadableImage, train_crop

    labels = source.class_labels()
    columns = []
    for label in np.unique(labels)[:COLUMNS]:
        pictures = []
        for index in np.flatnonzero(labels == label).tolist():
            try:
                picture, _ = source[index]
            except UnreadableImage as error:
                print(f"alitok: not shown: {error}", file=sys.stderr)
                continue
            pictures.append(train_crop(picture, size, stream(0, "augment", index)))
            if len(pictures) == ROWS:
                break
        blank = torch.full((3, size, size), 255, dtype=torch.uint8)
        columns.append(torch.stack([*pictures, *[blank] * (ROWS - len(pictures))]))
    titles = [source.class_names[label] for label in np.unique(labels)[:COLUMNS]]
    save_grid(torch.stack(columns, dim=1).flatten(0, 1), path, len(columns), titles)

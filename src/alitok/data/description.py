"""What a data spec is taken for, of `alitok describe --data`: a table, JSON, pictures as training cuts them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.data.found import Found
    from alitok.data.sources import Source

COLUMNS, ROWS = 8, 4  # classes and pictures of each in the grid
LISTED = 20  # classes in the table
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
    """Refuses options of a run together with those of a data set, and neither of both."""
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
    """Prints what `--data` is taken for, and writes `--picture`.

    Raises:
        BadInput: as `open_source`, or a picture that cannot be written.
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
    if args.json:
        import json

        print(json.dumps(found.record(), indent=2))
    else:
        print_table(found)
    if args.picture is not None:
        save_pictures(sources["train"], args.picture, size)


def print_table(found: "Found") -> None:
    """The record for people."""
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
    table.add_row("classes", f"{len(classes):,}", f"each of {min(counts):,} to {max(counts):,} images of train")
    for name, count in list(classes.items())[:LISTED]:
        table.add_row("", f"{count:,}", text(name))
    if len(classes) > LISTED:
        table.add_row("", "", f"and {len(classes) - LISTED:,} more (--json lists all)")
    table.add_section()
    for note in found.passed_over:
        table.add_row("passed over or guessed", f"{note.count:,}", text(f"{note.what}: {note.why}"))
    if not found.passed_over:
        table.add_row("passed over or guessed", "", "nothing")
    Console().print(table)


def save_pictures(source: "Source", path: Path, size: int) -> None:
    """Writes a PNG of the first pictures of the first classes, a column each, as training cuts them.

    A picture that cannot be read is named on stderr, and the next of its class takes its place.
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

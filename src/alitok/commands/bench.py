"""Measure the speed of the parts, compared with a plain baseline and with this machine's limit.

WHAT is any of sampling, training, tokenizing, data, evaluation; the default is all. Models have random weights and data
is made on the spot, so no files are needed. The limits (matrix products, memory bandwidth) are measured first.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.commands.options import add_device_argument
from alitok.common.build import nearest
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.profiling.bench_machine import Machine, Options, Row

PARTS = ("sampling", "training", "tokenizing", "data", "evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"parts: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the machine and the rows go")
    parser.add_argument(
        "--experiment", default="release", metavar="NAME", help="folder of experiments/ (default: release, 273 tokens)"
    )
    parser.add_argument(
        "--size", nargs="+", default=["177M"], metavar="SIZE", help="size of the generator: 177M (default), 318M, 662M"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, metavar="N", help="images of a step (default: what suits the device)"
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["float32", "bfloat16"],
        metavar="TYPE",
        help="float32, bfloat16 (default: both, if the device has bfloat16)",
    )
    add_device_argument(parser)
    parser.epilog = (
        "example: alitok bench --json bench.json                       all, in minutes on a CPU\n"
        "         alitok bench sampling --size 177M 662M --batch 1 8 32"
    )


def run(args: argparse.Namespace) -> None:
    for name in args.what:
        if name not in PARTS:
            raise BadInput(f"There is no benchmark {name!r}{nearest(name, PARTS)}; choose of {', '.join(PARTS)}.")
    if min(args.batch or [1]) < 1:
        raise BadInput("--batch must be at least 1.")

    from rich.console import Console

    from alitok.common.devices import has_bfloat16, pick_device
    from alitok.common.files import write_json
    from alitok.profiling.bench_machine import Options, measure_machine

    console = Console()
    batches = tuple(args.batch) if args.batch else None
    device = pick_device(args.device)
    usable = ["float32", "bfloat16"] if has_bfloat16(device) else ["float32"]
    if not args.precision and len(usable) == 1:
        console.print("bfloat16 is left out: this processor has no products of bfloat16 matrices.")
    with console.status("Measuring the machine's limits"):
        machine = measure_machine(device)
    options = Options(machine, args.experiment, tuple(args.size), batches, tuple(args.precision or usable))

    def keep(rows: list["Row"]) -> None:
        if args.json:
            write_json(args.json, {"machine": machine.record(), "rows": [row.record() for row in rows]})

    keep([])
    show(machine, measure(args.what or PARTS, options, console, keep), console)


def measure(names: Any, options: "Options", console: Any, keep: Callable[[list["Row"]], None]) -> list["Row"]:
    """The rows of these parts; shows a progress bar over parts, and a line for each row.

    Each part computes as its verb does. Sampling lets a GPU use TF32; training decides it step by step.

    Args:
        keep: called with all rows so far, after each row.
    """
    from contextlib import nullcontext

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from alitok.common.devices import float32_products
    from alitok.profiling.bench_data import data, evaluation, tokenizing
    from alitok.profiling.bench_sampling import sampling
    from alitok.profiling.bench_training import training

    parts = dict(zip(PARTS, (sampling, training, tokenizing, data, evaluation), strict=True))
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=f"Measuring {name}")
            if name == "tokenizing":
                progress.stop()  # it has its own bar, and older versions of rich show only one
            tf32 = options.machine.cuda and name == "sampling"
            with float32_products(tf32=True) if tf32 else nullcontext():
                for row in parts[name](options):
                    rows.append(row)
                    keep(rows)
                    console.print(f"{row.name}: {worded(row)}")
            progress.start()
            progress.advance(task)
    return rows


def worded(row: "Row") -> str:
    """A row's value and unit as text."""
    return "out of memory" if row.value is None else f"{readable(row.value)} {row.unit}"


def readable(value: float) -> str:
    """A value with three digits; thousands with commas, millions with an M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show(machine: "Machine", rows: list["Row"], console: Any) -> None:
    """Print the rows as a table."""
    from rich.table import Table

    record = machine.record()
    title = (
        f"{record['device']}, {record['threads']} threads: float32 {machine.float32 / 1e9:,.0f} and bfloat16 "
        f"{machine.bfloat16 / 1e9:,.0f} GFLOP/s, memory {machine.bandwidth / 1e9:,.1f} GB/s; "
        f"decoding by {record['kernels']['decode']}, linear layers {record['kernels']['linear']}"
    )
    table = Table(title=title)
    table.add_column("benchmark", no_wrap=True)
    for column in ("value", "ratio", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        lines = [row.name]
        if row.limit:
            lines.append(f"[dim]  limit: {readable(row.limit)}, {row.bound}[/]")
        if row.notes and "equal_argmax" in row.notes:
            lines.append(f"[dim]  {row.notes['equal_argmax']:.2%} of argmax as float32[/]")
        table.add_row(
            "\n".join(lines),
            worded(row),
            f"{row.ratio:.2f}" if row.ratio else "",
            f"{row.share_of_limit:.0%}" if row.share_of_limit else "",
        )
    console.print(table)

"""Describe a run without training it: parameters, tokens, FLOPs per step, memory per device, images seen, hours.

No model is allocated. With --data SPEC instead of -c: how a data spec is read, and what is ignored and why.
"""

import argparse
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alitok.commands.options import add_config_argument, add_print_config_argument, print_config
from alitok.common.errors import BadInput
from alitok.data.description import add_data_arguments, check_data_arguments, describe_data

TAKES_OVERRIDES = True
NAMES = ("H100", "A100", "H200", "RTX 4090", "cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser, required=False)
    add_print_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs, instead of a table")
    parser.add_argument(
        "--hardware",
        choices=NAMES,
        help="device to count memory and hours for (default: memory for what the trainer takes here, hours for all)",
    )
    parser.add_argument(
        "--utilization",
        "--utilisation",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the peak that is reached (default 0.4)",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="images of the data set, for epochs (default: data.count or ImageNet's)"
    )
    add_data_arguments(parser)
    parser.epilog = (
        "examples:\n"
        "  alitok describe --data data/pets --picture pets.png\n"
        "  alitok describe -c experiments/imagenet256/generator.yaml -c experiments/sizes/662M.yaml \\\n"
        "    -c experiments/strategies/fsdp.yaml --trainer.devices 8 --hardware H100\n"
        "any --key value overrides the files"
    )


def run(args: argparse.Namespace) -> None:
    if print_config(args):
        return
    check_data_arguments(args)
    if args.data is not None:
        describe_data(args)
        return
    if not 0 < args.utilization <= 1:
        raise BadInput(f"--utilization is a share of the peak between 0 and 1, not {args.utilization}.")
    if args.images is not None and args.images < 1:
        raise BadInput(f"--images must be at least 1, not {args.images}.")
    gc.disable()  # it would walk all of torch's modules many times: a tenth of the time
    try:
        record = _record(args)
    finally:
        gc.enable()
    if args.json:
        import json

        print(json.dumps(record, indent=2))
    else:
        _print_table(record, " + ".join(str(Path(file)) for file in args.config))


def _record(args: argparse.Namespace) -> dict[str, Any]:
    from alitok.config import compose_run
    from alitok.profiling.cost import cost
    from alitok.profiling.record import as_record, chosen, hardware_of, images_of, layout_of

    config = compose_run(args.config, args.overrides)
    result = cost(config, layout_of(config["trainer"], args.hardware))
    images = args.images or images_of(config["data"].get("init_args") or {})
    return as_record(result, hardware_of(args.hardware), args.utilization, images) | chosen(config["model"])


def _print_table(record: Mapping[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from alitok.profiling.record import THIS_CPU

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    parameters = dict(record["parameters"])
    total, trainable = parameters.pop("total"), parameters.pop("trainable")
    table.add_row("parameters", f"{total:,}", f"of the {record['model']}; {trainable:,} train")
    for part, count in parameters.items():
        table.add_row(f"  {part}", f"{count:,}", "")
    for network, count in record["parameters_beside"].items():
        table.add_row(f"  beside: {network}", f"{count:,}", "in no total")
    table.add_row("tokens", f"{record['tokens']:,}", "N, of an image")
    codes = f"{record['codebook_size']:,} codes"
    codes = codes if record["sub_codes"] == 1 else f"{record['sub_codes']} sub-codes of {codes}"
    note = f"{record['bits_per_token']:.2f} a token: {codes}"
    table.add_row("bits", f"{record['bits_per_picture']:,.0f}", note)
    if record["bottleneck"]:
        table.add_row("bottleneck", "", record["bottleneck"])
    for name, block in record["losses"].items():
        table.add_row("loss", name, block)
    for key, name in record["classes"].items():
        table.add_row("class", name, key)
    for key, value in record["options"].items():
        table.add_row("option", str(value), key)
    table.add_section()

    a_step = record["flops_per_step"]
    table.add_row("FLOPs a step", _si(a_step), "forward and backward, global batch, mean over the run")
    for part, count in record["flops_by_part"].items():
        table.add_row(f"  {part}", _si(count), f"{count / a_step:.1%}")
    if len(record["turns"]) > 1:
        for turn in record["turns"]:
            table.add_row(f"  in {turn['phases']}", _si(turn["flops"]), f"{turn['steps']:,} steps")
    table.add_section()

    where = "a CPU" if record["device"] == "cpu" else "a GPU"
    strategy = "" if record["strategy"] == "single" else f", {record['strategy']}"
    table.add_row(
        "memory per device",
        _bytes(record["memory_bytes"]),
        f"peak on {where}, {record['devices']} device(s){strategy}, {record['precision']}, in {record['memory_phase']}",
    )
    for kind, size in record["memory_by_kind"].items():
        note = "none yet at that moment" if kind == "gradients" and not size else ""
        table.add_row(f"  {kind}", _bytes(size), note)
    table.add_section()

    share = record["global_batch"] // record["devices"]
    table.add_row("global batch", f"{record['global_batch']:,}", "images an update")
    table.add_row(
        "  on a device", f"{share:,}", f"{record['accumulation']} micro-batch(es) of at most {record['micro_batch']}"
    )
    table.add_row("steps", f"{record['steps']:,}", "")
    table.add_row(
        "images seen",
        f"{record['images_seen']:,}",
        f"{record['epochs']:,.1f} times a data set of {record['dataset_images']:,} (--images)",
        end_section=True,
    )
    for name, hours in record["hours"].items():
        fits = record["fits"].get(name)
        table.add_row(
            f"hours on {name}" if name == THIS_CPU else f"hours on {record['devices']} x {name}",
            f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.3f}",
            f"at {record['utilisation']:.0%} of its peak" + ("; the memory does not suffice" if fits is False else ""),
        )
    console = Console()
    console.print(table)
    console.print(_note(record), style="dim")


def _note(record: Mapping[str, Any]) -> str:
    if record["device"] == "cpu":
        covers = "Memory: tensors at their peak, and an allowance for the allocator and the runtime; imports, data and "
        return covers + "validation come on top. For a GPU: --hardware H100."
    return (
        "Memory: tensors at their peak, as torch.cuda.max_memory_allocated counts them; the CUDA context, the "
        "allocator's reserve, communication buffers and libraries' workspaces (1 to 3 GB) and validation come on top."
    )


def _si(value: float) -> str:
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:,.2f} {unit}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"

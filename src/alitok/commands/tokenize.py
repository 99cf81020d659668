"""Encode a data set to a token cache: ten crops of each image, encoded in float32.

After an interruption the same command continues with the missing shards. Under `torchrun` the processes share the
shards.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from alitok.commands.options import add_device_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="artifact of stage 1 or 2")
    parser.add_argument(
        "--data", required=True, metavar="SPEC", help="data spec: shapes, a folder, or owner/name on the hub"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the cache; appears when it is whole")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="train (default), val, or the data set's own name of a split"
    )
    parser.add_argument("--image-column", metavar="NAME", help="image column of a table, if several could be it")
    parser.add_argument("--label-column", metavar="NAME", help="likewise")
    parser.add_argument("--streaming", action="store_true", help="read parquet files where they lie, e.g. on the hub")
    parser.add_argument("--count", type=int, metavar="N", help="take N images at most")
    parser.add_argument("--crops", choices=["ten", "center"], default="ten", help="views of an image (default ten)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="views encoded together (default 64)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode images (default: the cores for a GPU, else 0)"
    )
    parser.add_argument(
        "--precision", choices=["32", "tf32", "bf16"], default="32", help="precision of the encoder (default 32)"
    )
    parser.add_argument(
        "--images-per-shard", type=int, default=4096, metavar="N", help="saved at a time (default 4096)"
    )
    parser.add_argument(
        "--max-skipped", type=int, default=10, metavar="N", help="unreadable images to leave out (default 10)"
    )
    add_device_argument(parser)
    parser.epilog = (
        "example: alitok tokenize --tokenizer runs/demo/stage1/artifact --data shapes --out runs/shapes-tokens\n"
        "on eight GPUs: torchrun --nproc-per-node 8 -m alitok tokenize ..."
    )


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.distributed import all_or_none, process_group, rank
    from alitok.common.errors import BadInput
    from alitok.data.encoding import decoding_workers, is_finished, job, tokenize
    from alitok.data.found import announce
    from alitok.data.sources import open_source

    for name, least in (("batch", 1), ("images_per_shard", 1), ("max_skipped", 0), ("workers", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            raise BadInput(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
    out = Path(args.out)
    # the slowest process may have a whole shard more than the others
    with process_group(pick_device(args.device), timedelta(days=7)) as device:
        with all_or_none():
            tokenizer = load_tokenizer(args.tokenizer, device)
            source = open_source(
                args.data,
                "train" if args.split == "train" else "val",
                image_column=args.image_column,
                label_column=args.label_column,
                split_name=None if args.split in ("train", "val") else args.split,
                size=tokenizer.image_size,
                count=args.count,
                streaming=args.streaming,
            )
            announce(args.data, {args.split: source})
            finished = is_finished(out, job(tokenizer, source, args.crops, args.precision), source)
        if finished:
            if rank() == 0:
                print(f"{out} is finished; name another folder to tokenize again.")
            return
        pace = tokenize(
            tokenizer,
            source,
            out,
            args.crops,
            args.batch,
            decoding_workers(args.workers, device),
            precision=args.precision,
            images_per_shard=args.images_per_shard,
            max_skipped=args.max_skipped,
        )
        if rank() == 0:
            print(f"{out}: {len(source) - pace.skipped:,} images, {source.description}; {pace}")

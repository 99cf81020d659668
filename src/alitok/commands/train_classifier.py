"""Train a small classifier on any pictures. Its features replace Inception's, for a FID without a download.

Use its numbers only to compare runs on the same pictures.
"""

import argparse
from pathlib import Path

from alitok.commands.options import add_device_argument
from alitok.common.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="SPEC", help="shapes, a folder, or owner/name on the hub")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        type=Path,
        help="folder of the classifier, for `evaluate --extractor DIR`",
    )
    parser.add_argument("--size", type=int, default=64, help="pixels; pictures are cropped and resized (default 64)")
    parser.add_argument("--count", type=int, metavar="N", help="take N pictures at most (default: all)")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of 128 pictures (default 2000)")
    parser.add_argument(
        "--width", type=int, default=48, help="width of the first layer; features have four times it (default 48)"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_device_argument(parser)
    parser.epilog = "example: alitok train-classifier --data shapes --count 2000 --steps 200 --out runs/classifier"


def run(args: argparse.Namespace) -> None:
    import torch

    from alitok.common.devices import pick_device
    from alitok.common.files import check_readable_name, check_writable
    from alitok.data.found import announce
    from alitok.data.reading import read_all
    from alitok.data.sources import open_source
    from alitok.evaluation.classifier import train_and_save

    if args.out.exists():
        raise BadInput(f"{args.out} exists already; name another folder with --out.")
    for name, least in (("size", 16), ("width", 1), ("steps", 1)):
        if getattr(args, name) < least:
            raise BadInput(f"--{name} must be at least {least}, not {getattr(args, name)}.")
    check_readable_name(args.out)
    check_writable(args.out)  # before the minutes of training
    device = pick_device(args.device)
    source = open_source(args.data, "train", size=args.size, count=args.count)
    held_out = open_source(args.data, "val", size=args.size, count=args.count)
    announce(args.data, {"train": source, "val": held_out})
    images, labels = read_all(source, args.size)
    unseen, known = read_all(held_out, args.size)  # before the minutes of training
    classes = len(source.class_names)
    network = train_and_save(images, labels, classes, args.out, args.steps, args.width, device, seed=args.seed)
    with torch.inference_mode():
        logits = torch.cat([network(part.to(device).float() / 255).cpu() for part in unseen.split(500)])
    right = (logits.argmax(1) == known).double().mean().item()
    print(
        f"{args.out}: {network.num_features} features, digest {network.digest()[:12]}; {right:.1%} of {len(known):,}"
        f" held-out pictures right (chance {1 / classes:.1%}). Use its numbers only to compare your own runs."
    )

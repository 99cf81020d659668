"""Train the small classifier whose features stand in for Inception's, on any pictures: a FID without a download.

Numbers by it compare runs on the same pictures with one another, and with nothing else.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.commands.device import add_device_argument
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alitok.evaluation.classifier import Classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="SPEC", help="shapes, a folder, or owner/name on the hub")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="for `evaluate --extractor DIR`")
    parser.add_argument("--size", type=int, default=64, help="pixels; pictures are cropped and resized (default 64)")
    parser.add_argument("--count", type=int, metavar="N", help="at most so many pictures (default: all)")
    parser.add_argument("--steps", type=int, default=2000, help="of 128 pictures (default 2000)")
    parser.add_argument(
        "--width", type=int, default=48, help="of its first layer; features are four times it (default 48)"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_device_argument(parser)
    parser.epilog = "example: alitok train-classifier --data shapes --count 2000 --steps 200 --out runs/classifier"


def run(args: argparse.Namespace) -> None:
    import torch

    from alitok.commands.device import pick_device
    from alitok.commands.image_specs import check_writable, read_all
    from alitok.common.files import check_readable_name
    from alitok.data.found import announce
    from alitok.data.sources import open_source

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
    classes = len(source.class_names)
    network = train(images, labels, classes, args.out, args.steps, args.width, device, seed=args.seed)
    images, labels = read_all(held_out, args.size)
    with torch.inference_mode():
        logits = torch.cat([network(part.to(device).float() / 255).cpu() for part in images.split(500)])
    right = (logits.argmax(1) == labels).double().mean().item()
    print(
        f"{args.out}: {network.num_features} features, digest {network.digest()[:12]}; {right:.1%} of {len(labels):,}"
        f" held-out pictures right (chance {1 / classes:.1%}). Numbers by it compare runs of your own only."
    )


def train(
    images: "Tensor",
    labels: "Tensor",
    num_classes: int,
    out: Path,
    steps: int,
    width: int,
    device: "torch.device | str" = "cpu",
    batch: int = 128,
    seed: int = 0,
) -> "Classifier":
    """Trains a classifier under a progress bar and saves it to a folder.

    Args:
        images: (M, 3, H, W) uint8.
        labels: (M,).
    """
    from alitok.commands.image_specs import counter
    from alitok.evaluation.classifier import array_batches, train_classifier

    with counter("Classifier", steps) as advance:
        network = train_classifier(
            array_batches(images, labels, batch, seed),
            num_classes=num_classes,
            steps=steps,
            seed=seed,
            width=width,
            device=device,
            progress=lambda step, loss: advance(1),
        )
    network.save(out)
    return network

"""Draw pictures from a generator: a titled grid (.png), an .npz for evaluators, or a folder of PNG.

Image i is the same in any batch (on a GPU: for one batch size and card) and on any number of processes (torchrun).
After an interruption the same command continues. `samples.json` in a folder, or NAME.json next to NAME.npz, records how
the images were drawn.
"""

import argparse
from pathlib import Path

from alitok.commands.options import add_guidance_arguments, add_speed_arguments, draw_of

FEW = 20  # classes that an error message lists


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generator", required=True, metavar="DIR", help="generator artifact")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer artifact that decodes")
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="grid.png, samples.npz or a folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--classes", metavar="CLASS,...", help="numbers or names, comma-separated, e.g. 207,360")
    which.add_argument("--count", type=int, metavar="N", help="so many images in all, classes cycling")
    parser.add_argument("--per-class", type=int, default=4, metavar="N", help="images of each of --classes (default 4)")
    add_guidance_arguments(parser)
    parser.add_argument("--keep", type=int, metavar="K", help="draw and decode the first K tokens only (default: all)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random numbers (default: the card's)")
    add_speed_arguments(parser)
    parser.epilog = (
        "example: alitok sample --generator runs/demo/generator/artifact --tokenizer runs/demo/stage2/artifact"
        " --classes star,heart --out stars.png\n"
        "         torchrun --nproc-per-node 8 -m alitok sample ... --count 50000 --out samples.npz   shares the work"
    )


def run(args: argparse.Namespace) -> None:
    from datetime import timedelta

    import torch
    from torch import Tensor

    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.distributed import process_group, rank
    from alitok.common.errors import BadInput
    from alitok.common.images import save_grid
    from alitok.sampling.generate import check_keep
    from alitok.sampling.sets import class_names, draw_set, set_settings

    for name in ("count", "per_class"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    # Processes wait for the slowest, which may have hours more to draw.
    with process_group(pick_device(args.device), patience=timedelta(days=1)) as device:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as the published samples were drawn
        generator, tokenizer = load_generator(args.generator, device), load_tokenizer(args.tokenizer, device)
        check_pair(generator, tokenizer)
        check_keep(generator, args.keep)
        tokenizer.check_length(generator.num_tokens if args.keep is None else args.keep)
        names = class_names(generator)
        classes = list(range(len(names))) if args.count else class_numbers(args.classes, names)
        labels = None if args.count else classes * args.per_class
        draw = draw_of(args, generator.card)
        count = args.count or len(classes) * args.per_class
        sources = (Path(args.generator).name, Path(args.tokenizer).name)
        settings = set_settings(generator, tokenizer, sources, draw, count, labels)
        columns = min(len(classes), 10, count) if args.count else len(classes)
        same_below = not args.count or columns in (len(classes), count)  # each column shows one class

        def grid(images: Tensor) -> None:
            titles = [names[label] for label in classes[:columns]] if same_below else None
            save_grid(images, args.out, columns, titles)

        drawn = draw_set(generator, tokenizer, args.out, settings, args.batch, grid)
        if rank() == 0:
            print(f"{args.out}: {count:,} images" + ("" if drawn else ", all there already"))


def class_numbers(text: str | None, names: list[str]) -> list[int]:
    """Class numbers in a text like "3,star"; the first ten classes if it is None.

    Raises:
        BadInput: an unknown class; names the nearest one.
    """
    from alitok.common.build import nearest
    from alitok.common.errors import BadInput

    if text is None:
        return list(range(min(10, len(names))))
    numbers = []
    words = [part.strip() for part in text.split(",")]
    while words:
        # a name may contain commas, e.g. "tench, Tinca tinca": the longest that fits
        sizes = (size for size in range(len(words), 0, -1) if ", ".join(words[:size]) in names)
        size = next(sizes, 1)
        word = ", ".join(words[:size])
        if word in names:
            numbers.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            numbers.append(int(word))
        else:
            known = f"{len(names)}, 0..{len(names) - 1}" if len(names) > FEW else ", ".join(names)
            raise BadInput(f"No class {word!r}: there are {known}{nearest(word, names)}")
        words = words[size:]
    return numbers

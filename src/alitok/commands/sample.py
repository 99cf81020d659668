"""Draw pictures from a generator: a titled grid (.png), an .npz for evaluators, or a folder of PNG."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generator", required=True, metavar="DIR", help="generator artifact")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer artifact that decodes")
    parser.add_argument("--out", required=True, metavar="PATH", help="grid.png, samples.npz or a folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--classes", help="numbers or names, comma-separated, e.g. 207,360")
    which.add_argument("--count", type=int, help="so many images in all, classes cycling")
    parser.add_argument("--per-class", type=int, default=4, help="images of each of --classes (default 4)")
    parser.add_argument("--guidance", type=float, help="scale of power-cosine guidance, 0 = none (default: the card's)")
    parser.add_argument("--power", type=float, help="of the guidance (default: the card's)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="(default: the card's)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.epilog = (
        "example: alitok sample --generator runs/demo/generator/artifact --tokenizer runs/demo/stage2/artifact"
        " --classes star,heart --out stars.png"
    )


def run(args: argparse.Namespace) -> None:
    from rich.progress import Progress

    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.commands.device import pick_device
    from alitok.common.errors import BadInput
    from alitok.sampling.images import sample_images

    for name in ("count", "per_class", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    device = pick_device(args.device)
    generator, tokenizer = load_generator(args.generator, device), load_tokenizer(args.tokenizer, device)
    check_pair(generator, tokenizer)
    card = generator.card
    names = card.get("class_names") or [str(index) for index in range(generator.num_classes)]
    if args.count:
        classes = list(range(len(names)))
        labels = [index % len(names) for index in range(args.count)]
    else:
        classes = class_numbers(args.classes, names)
        labels = [label for _ in range(args.per_class) for label in classes]
    out = Path(args.out)
    columns = min(len(classes), 10) if args.count else len(classes)
    titles = [names[label] for label in labels[:columns]] if columns <= len(classes) else None
    seed = args.seed if args.seed is not None else card.get("seed") or 0
    batches = -(-len(labels) // args.batch)
    with Progress() as progress, writer(out, len(labels), tokenizer.image_size, columns, titles) as write:
        task = progress.add_task("Sampling", total=batches * generator.num_tokens)
        for indices, _, images in sample_images(
            generator,
            tokenizer,
            labels,
            batch=args.batch,
            guidance=args.guidance,
            power=args.power,
            temperature=args.temperature,
            seed=seed,
            on_step=lambda step: progress.advance(task),
        ):
            write(indices, images)
    print(f"{out}: {len(labels):,} images")


def class_numbers(text: str | None, names: list[str]) -> list[int]:
    """Class numbers of "3,star,..."; the first ten classes where nothing is given.

    Raises:
        BadInput: a class that is not there, with the nearest name.
    """
    from alitok.common.build import nearest
    from alitok.common.errors import BadInput

    if text is None:
        return list(range(min(10, len(names))))
    numbers = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            numbers.append(names.index(word))
        elif word.isdigit() and int(word) < len(names):
            numbers.append(int(word))
        else:
            raise BadInput(f"No class {word!r}: there are {len(names)}, 0..{len(names) - 1}{nearest(word, names)}")
    return numbers


def writer(out: Path, count: int, size: int, columns: int, titles: list[str] | None) -> Any:
    """A context that takes (indices, images) and leaves a grid, an .npz or a folder of PNG, whole or not at all."""
    from contextlib import contextmanager

    import numpy as np
    import torch

    from alitok.callbacks.pictures import save_grid
    from alitok.common.errors import BadInput
    from alitok.common.files import atomic_file, atomic_folder
    from alitok.evaluation.quantise import to_uint8

    @contextmanager
    def grid() -> Any:
        kept: list[torch.Tensor] = []
        yield lambda indices, images: kept.append(images.cpu())
        save_grid(torch.cat(kept), out, columns, titles)

    @contextmanager
    def npz() -> Any:
        import zipfile
        from tempfile import TemporaryDirectory

        # Filled through a memory map, so that 50,000 images need no memory of their own.
        with atomic_file(out) as target, TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as near:
            array_file = Path(near) / "arr_0.npy"
            array = np.lib.format.open_memmap(array_file, "w+", np.uint8, (count, size, size, 3))

            def write(indices: list[int], images: torch.Tensor) -> None:
                array[indices] = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()

            yield write
            array.flush()
            with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                archive.write(array_file, "arr_0.npy")

    @contextmanager
    def folder() -> Any:
        from torchvision.io import write_png

        with atomic_folder(out) as target:

            def write(indices: list[int], images: torch.Tensor) -> None:
                for index, image in zip(indices, to_uint8(images).cpu(), strict=True):
                    write_png(image, str(target / f"{index:06d}.png"))

            yield write

    if out.suffix not in ("", ".png", ".npz"):
        raise BadInput(f"--out {out} must be a .png grid, an .npz file or a folder.")
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out} exists and is no empty folder; name another.")
    return {".png": grid, ".npz": npz, "": folder}[out.suffix]()

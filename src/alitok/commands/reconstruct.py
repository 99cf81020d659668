"""Encode pictures to tokens and decode them again: PNGs, a side-by-side grid and the PSNR of each."""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
GRID_PAIRS = 32
GRID = "grid.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="DIR", required=True, help="tokenizer artifact, or owner/name on the Hugging Face hub"
    )
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="pictures, or folders of pictures")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help=f"folder for the reconstructions and {GRID}"
    )
    parser.epilog = "example: alitok reconstruct --tokenizer runs/demo/stage2/artifact pictures/ --out runs/mine"


def run(args: argparse.Namespace) -> None:
    import torch
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
    from torchvision.utils import make_grid

    from alitok.artifacts.folder import load_tokenizer
    from alitok.data.pictures import read_picture
    from alitok.data.transforms import center_crop, to_tensor
    from alitok.evaluation.quantise import to_uint8
    from alitok.evaluation.reconstruction import psnr

    paths = find_pictures(args.images)
    for path in paths:  # a bad picture is to be found before anything is written
        read_picture(path, str(path))
    names = output_names(paths)
    given = {path.resolve() for path in paths}
    for name in (*names, GRID):
        if (args.out / name).resolve() in given:
            raise BadInput(f"{args.out / name} is one of the pictures and would be overwritten; name another --out.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(args.tokenizer, device)
    size = tokenizer.image_size

    pairs: list[torch.Tensor] = []
    values: list[float] = []
    progress = Console(stderr=True)
    for start in track(range(0, len(paths), BATCH), "Reconstructing", console=progress, transient=True):
        batch = [to_tensor(center_crop(read_picture(path, str(path)), size)) for path in paths[start : start + BATCH]]
        images = torch.stack(batch).to(device) / 255
        with torch.inference_mode():
            outputs = tokenizer.decode(tokenizer.encode(images)).clamp(0, 1)
        values += psnr(outputs, images).tolist()
        pictures = to_uint8(outputs, "round").cpu()
        for name, original, picture in zip(names[start : start + BATCH], batch, pictures, strict=True):
            _save(picture, args.out / name)
            if len(pairs) < 2 * GRID_PAIRS:
                pairs += [original, picture]
    _save(make_grid(pairs, nrow=2 if len(paths) < 4 else 8, padding=4, pad_value=255), args.out / GRID)

    table = Table("picture", "reconstruction", "PSNR (dB)")
    for path, name, value in zip(paths, names, values, strict=True):
        table.add_row(str(path), name, f"{value:.2f}")
    table.add_row("mean", "", f"{sum(values) / len(values):.2f}", style="bold")
    Console().print(table)
    print(f"{args.out / GRID}: original and reconstruction, side by side")


def find_pictures(given: list[Path]) -> list[Path]:
    """The pictures among the paths and, sorted, in the folders among them.

    Raises:
        BadInput: a path that is not there, or a folder without pictures.
    """
    from alitok.data.folders import image_files
    from alitok.data.pictures import IMAGE_ENDINGS

    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(Path(os.fsdecode(name)) for name in image_files(path))
            if not found:
                raise BadInput(f"Folder {path} holds no pictures ({', '.join(IMAGE_ENDINGS)}).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise BadInput(f"There is no picture or folder {path}.")
    return paths


def output_names(paths: list[Path]) -> list[str]:
    """A PNG name for each picture: its own name, numbered where several are alike or it is the grid's."""
    used: Counter[str] = Counter({GRID: 1})
    names = []
    for path in paths:
        name = f"{path.stem}.png"
        while used[name]:
            used[f"{path.stem}.png"] += 1
            name = f"{path.stem}-{used[f'{path.stem}.png']}.png"
        used[name] += 1
        names.append(name)
    return names


def _save(picture: "Tensor", path: Path) -> None:
    from PIL import Image

    from alitok.common.files import atomic_file

    with atomic_file(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(temporary, format="PNG")

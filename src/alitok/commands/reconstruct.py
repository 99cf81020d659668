"""Encode pictures to tokens and decode them: writes PNGs and a side-by-side grid, prints the PSNR of each.

With --keep only the first tokens of each picture are decoded, if the tokenizer was trained for it. With several counts
tokens.png shows pictures by number of tokens, and tokens.json has the mean PSNR for each number.
"""

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
BY_TOKENS = "tokens.png"
ROWS = 8  # pictures in BY_TOKENS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="DIR", required=True, help="tokenizer artifact, or owner/name on the Hugging Face hub"
    )
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="pictures, or folders of pictures")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help=f"folder for the reconstructions and {GRID}"
    )
    parser.add_argument(
        "--keep",
        metavar="K",
        help="decode the first K tokens only; or several counts (1,4,16), or powers (1, 2, 4, ... to all)",
    )
    parser.epilog = (
        "example: alitok reconstruct --tokenizer runs/demo/stage2/artifact pictures/ --out runs/mine\n"
        "         alitok reconstruct --tokenizer runs/tail-drop/stage1/artifact pictures/ --keep powers --out runs/mine"
    )


def run(args: argparse.Namespace) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table
    from torchvision.utils import make_grid

    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.images import to_uint8
    from alitok.common.progress import bar
    from alitok.data.pictures import crop, read_picture
    from alitok.evaluation.reconstruction import psnr

    paths = find_pictures(args.images)
    for path in paths:  # find a bad picture before anything is written
        read_picture(path, str(path))
    names = output_names(paths)
    device = pick_device("auto")
    tokenizer = load_tokenizer(args.tokenizer, device)
    size = tokenizer.image_size
    counts = token_counts(args.keep, tokenizer.num_tokens)
    for count in counts:
        tokenizer.check_length(count)
    given = {path.resolve() for path in paths}
    for name in (*names, GRID, *([BY_TOKENS] if len(counts) > 1 else [])):
        if (args.out / name).resolve() in given:
            raise BadInput(f"{args.out / name} is one of the pictures and would be overwritten; name another --out.")

    pairs: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    values: list[list[float]] = []  # PSNR of each picture, by tokens kept
    for start in bar("Reconstructing")(range(0, len(paths), BATCH)):
        batch = [crop(read_picture(path, str(path)), size) for path in paths[start : start + BATCH]]
        images = torch.stack(batch).to(device) / 255
        with torch.inference_mode():
            ids = tokenizer.encode(images)
            places = range(start, start + len(batch))
            outputs = [tokenizer.decode(ids[:, :count], indices=places).clamp(0, 1) for count in counts]
        values += torch.stack([psnr(output, images) for output in outputs], dim=1).tolist()
        pictures = to_uint8(outputs[-1], "round").cpu()
        if len(counts) > 1 and len(rows) < ROWS:
            by_count = [*(to_uint8(output, "round").cpu() for output in outputs), torch.stack(batch)]
            rows += list(torch.stack(by_count, dim=1))
        for name, original, picture in zip(names[start : start + BATCH], batch, pictures, strict=True):
            _save(picture, args.out / name)
            if len(pairs) < 2 * GRID_PAIRS:
                pairs += [original, picture]
    _save(make_grid(pairs, nrow=2 if len(paths) < 4 else 8, padding=4, pad_value=255), args.out / GRID)

    table = Table("picture", "reconstruction", "PSNR (dB)")
    for path, name, of_picture in zip(paths, names, values, strict=True):
        table.add_row(str(path), name, f"{of_picture[-1]:.2f}")
    means = [sum(column) / len(values) for column in zip(*values, strict=True)]
    table.add_row("mean", "", f"{means[-1]:.2f}", style="bold")
    Console().print(table)
    print(f"{args.out / GRID}: original and reconstruction, side by side")
    if len(counts) > 1:
        _by_tokens(rows[:ROWS], dict(zip(counts, means, strict=True)), len(paths), args.out)


def token_counts(keep: str | None, total: int) -> list[int]:
    """Numbers of tokens to keep out of `total`, rising: all, K, "1,4,16", or "powers".

    Raises:
        BadInput: something else.
    """
    from alitok.ideas.nested_dropout import powers_of_two

    if keep is None:
        return [total]
    if keep == "powers":
        return powers_of_two(total)
    words = [word.strip() for word in keep.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise BadInput(f"--keep {keep!r} is no number of tokens: give 1 to {total}, several (1,4,16), or powers.")
    return sorted({int(word) for word in words})


def _by_tokens(rows: "list[Tensor]", means: dict[int, float], pictures: int, out: Path) -> None:
    """Write pictures by tokens kept and their mean PSNR, and print the latter."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from alitok.common.files import write_json
    from alitok.common.images import save_grid

    titles = [*map(str, means), "original"]
    save_grid(torch.cat(rows), out / BY_TOKENS, len(titles), titles)
    write_json(out / "tokens.json", {"pictures": pictures, "psnr": means})
    table = Table("tokens kept", "mean PSNR (dB)")
    for count, mean in means.items():
        table.add_row(str(count), f"{mean:.2f}")
    Console().print(table)
    print(f"{out / BY_TOKENS}: pictures from their first tokens; {out / 'tokens.json'}: the table")


def find_pictures(given: list[Path]) -> list[Path]:
    """The pictures among the paths and, sorted, in the folders among them.

    Raises:
        BadInput: a missing path, or a folder without pictures.
    """
    from alitok.data.listing import image_files
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
    """A PNG name for each picture: its own name, numbered if it is taken already or belongs to a grid."""
    used: Counter[str] = Counter({GRID: 1, BY_TOKENS: 1})
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

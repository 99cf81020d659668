"""Encode a data set to a token cache: ten crops of each image, encoded in float32."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="artifact of stage 1 or 2")
    parser.add_argument("--data", required=True, metavar="SPEC", help="shapes, a folder, or owner/name on the hub")
    parser.add_argument("--out", required=True, metavar="DIR", help="the cache; appears when it is whole")
    parser.add_argument("--split", default="train", choices=["train", "val"])
    parser.add_argument("--count", type=int, help="at most so many images")
    parser.add_argument("--crops", choices=["ten", "center"], default="ten")
    parser.add_argument("--batch", type=int, default=64, help="views encoded together (default 64)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images (default 0)")
    parser.add_argument("--device", default="auto")
    parser.epilog = (
        "example: alitok tokenize --tokenizer runs/demo/stage1/artifact --data shapes --out runs/demo/tokens"
    )


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.folder import load_tokenizer
    from alitok.commands.device import pick_device
    from alitok.common.errors import BadInput
    from alitok.data.sources import open_source
    from alitok.data.token_cache import TokenCache

    tokenizer = load_tokenizer(args.tokenizer, pick_device(args.device))
    source = open_source(args.data, args.split, size=tokenizer.image_size, count=args.count)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            cache = TokenCache(out)
        except BadInput as error:
            raise BadInput(f"--out {out} holds something else than a token cache; name another folder.") from error
        made = (cache.digest, cache.recipe, len(cache), cache.class_names)
        wanted = (tokenizer.card["digest"], crop_recipe(tokenizer.image_size, args.crops), len(source))
        if cache.digest is not None and made != (*wanted, source.class_names):
            raise BadInput(
                f"{out} holds a token cache of another tokenizer, data set or crop recipe; name another folder."
            )
        print(f"{out} is finished; name another folder to tokenise anew.")
        return
    tokenize(tokenizer, source, out, args.crops, args.batch, args.workers)
    print(f"{out}: {len(source):,} images, {source.description}")


def crop_recipe(size: int, crops: str) -> dict[str, Any]:
    """How the views of a cache are cut, as its metadata says it."""
    return {"crop": crops, "resize": int(1.1 * size) if crops == "ten" else size, "size": size}


def tokenize(tokenizer: Any, source: Any, out: Path, crops: str = "ten", batch: int = 64, workers: int = 0) -> None:
    """Writes the token cache of a source.

    Args:
        tokenizer: as loaded, with its card.
        crops: "ten" (the recipe's ten crops of a centre crop to int(1.1 x size)) or "center" (one view).
        batch: views that are encoded together.

    Raises:
        BadInput: an image that cannot be read, or a folder that cannot be written; nothing is left half-written.
    """
    from rich.progress import track

    from alitok.data.token_cache import write_token_cache

    rows = _encoded(tokenizer, source, crops, batch, workers)
    write_token_cache(
        out,
        track(rows, description="Tokenising", total=len(source)),
        codebook_size=tokenizer.codebook_size,
        digest=tokenizer.card["digest"],
        class_names=source.class_names,
        recipe=crop_recipe(tokenizer.image_size, crops),
        total=len(source),
    )


class _Views:
    """Map-style: image -> (label, views (views, 3, size, size) uint8); bad input is handed on, not raised."""

    def __init__(self, source: Any, size: int, crops: str) -> None:
        self.source, self.size, self.crops = source, size, crops

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        from alitok.common.errors import BadInput
        from alitok.data.transforms import center_crop, ten_crop, to_tensor

        try:
            image, label = self.source[index]
        except BadInput as error:
            return error, None
        if self.crops == "ten":
            return label, ten_crop(image, self.size)
        return label, to_tensor(center_crop(image, self.size))[None]


def _encoded(tokenizer: Any, source: Any, crops: str, batch: int, workers: int) -> Iterator[tuple[int, Any]]:
    import torch
    from torch.utils.data import DataLoader

    from alitok.common.errors import BadInput

    device = next(tokenizer.parameters()).device
    views = 10 if crops == "ten" else 1
    images = max(1, batch // views)
    loader: DataLoader[Any] = DataLoader(
        _Views(source, tokenizer.image_size, crops),  # type: ignore[arg-type]
        batch_size=images,
        num_workers=workers,
        collate_fn=list,
    )
    for items in loader:
        for label, _ in items:
            if isinstance(label, BadInput):
                raise label
        pixels = torch.cat([crop for _, crop in items]).to(device).float() / 255
        ids = tokenizer.encode(pixels).cpu().unflatten(0, (len(items), views)).numpy()
        yield from zip((label for label, _ in items), ids, strict=True)

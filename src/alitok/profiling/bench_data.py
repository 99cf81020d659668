"""Speed of loading pictures and tokens, encoding crops and measuring pictures, compared with one item at a time."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from alitok.common.build import build
from alitok.common.devices import float32_products
from alitok.common.random import derive_seed, stream
from alitok.data.batches import ImageBatches, Slots
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.encoding import crop_recipe, decoding_workers, tokenize
from alitok.data.pictures import ten_crop, to_tensor
from alitok.data.shapes import Shapes
from alitok.data.sources import Source, open_source
from alitok.data.token_shards import write_token_cache
from alitok.evaluation.extractors import Features, check_images, resize_as_tensorflow
from alitok.evaluation.fid import FeatureStatistics
from alitok.evaluation.image_sets import FolderImages
from alitok.evaluation.measure import measure
from alitok.profiling.bench_machine import Machine, Options, Row, if_it_fits, wait
from alitok.profiling.flops import Ledger

WIDTH, HEIGHT = 500, 375  # of the pictures made here: ImageNet's usual size
CACHED, VIEWS, TOKENS, CODES = 4096, 10, 273, 4096
TOKEN_BATCH = 2048
ENCODED = {"cpu": 2, "cuda": 256}  # pictures, ten crops each
DECODED = 256
MEASURED = {"cpu": 48, "cuda": 2048}


def data(options: Options) -> Iterator[Row]:
    """Rows `data-tokens` (sequences from a cache) and `data-images` (decoded, cropped, flipped, in batches)."""
    with TemporaryDirectory(prefix="alitok-bench-") as folder:
        yield token_batches(Path(folder), options.machine)
        yield image_batches(write_pictures(Path(folder) / "pictures", 64))


def token_batches(folder: Path, machine: Machine) -> Row:
    """One process's batches of token sequences; the baseline asks `datasets` for one image at a time."""
    import datasets

    random = np.random.default_rng(0)
    rows = ((i % 10, random.integers(CODES, size=(VIEWS, TOKENS))) for i in range(CACHED))
    names = [str(i) for i in range(10)]
    cache = folder / "tokens"
    write_token_cache(cache, rows, codebook_size=CODES, digest="0" * 64, class_names=names, recipe={})
    module = ImageNetDataModule(cache=str(cache), global_batch=TOKEN_BATCH, val_fraction=0.0)
    ours = rate(module.train_dataloader(), TOKEN_BATCH, batches=20)
    items = RowByRow(datasets.load_from_disk(str(cache)))
    plain = rate(DataLoader(items, batch_size=TOKEN_BATCH, shuffle=True), TOKEN_BATCH, batches=1, warm_up=0)
    moved = TOKENS * (2 + 8 + 8)  # read as uint16; written as int64, which fetches the line first
    return Row(f"data-tokens-{TOKENS}", ours, "sequences/s", plain, machine.bandwidth / moved, "memory bandwidth")


class RowByRow(Dataset[dict[str, Tensor]]):
    """The plain way to read a cache: an image is a row of lists, and one view becomes a tensor."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        view = int(torch.randint(len(row["tokens"]), ()))
        return {"tokens": torch.tensor(row["tokens"][view]), "label": torch.tensor(row["label"])}


def image_batches(folder: Path) -> Row:
    """Training batches of 256 x 256 decoded by one process per core; the baseline is one process without batches."""
    cores = len(os.sched_getaffinity(0))
    batch = 32
    module = ImageNetDataModule(str(folder), image_size=256, global_batch=batch, num_workers=cores, val_fraction=0.0)
    ours = rate(module.train_dataloader(), batch, batches=max(DECODED // batch, 2 * cores), warm_up=2 * cores)
    plain = decoding_rate(module, DECODED // 4)
    return Row("data-images-256", ours, "images/s", plain, cores * plain, f"{cores} x the baseline")


def decoding_rate(module: ImageNetDataModule, count: int) -> float:
    """Training crops per second that this process decodes and augments, one picture at a time."""
    if not module.splits:
        module.setup("fit")
    items = module.splits["train"]
    assert isinstance(items, ImageBatches)
    start = time.perf_counter()
    for position in range(count):
        where = torch.tensor([position])
        items[Slots(where, where % len(items.source))]
    return count / (time.perf_counter() - start)


def rate(loader: Any, size: int, batches: int, warm_up: int = 1) -> float:
    """Items per second of a loader whose batches hold `size`."""
    iterator = iter(loader)
    for _ in islice(iterator, warm_up):
        pass
    start = time.perf_counter()
    taken = sum(size for _ in islice(iterator, batches))
    return taken / (time.perf_counter() - start)


def write_pictures(folder: Path, count: int) -> Path:
    """Write JPEG files of ImageNet's usual dimensions and file size, in two folders of classes."""
    shapes = Shapes("train", WIDTH, count)
    for index in range(count):
        picture = np.asarray(shapes[index][0])[:HEIGHT].astype(np.float32)
        noise = np.random.default_rng(derive_seed("bench", index)).normal(0, 14, (HEIGHT, WIDTH, 1))
        place = folder / "ab"[index % 2] / f"{index}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)).save(place, quality=90)
    return folder


def tokenizing(options: Options) -> Iterator[Row]:
    """Rows `tokenizing-PRECISION`: ten crops of JPEG files encoded as in `alitok tokenize`; baseline: crop by crop."""
    machine = options.machine
    torch.manual_seed(0)
    tokenizer = build(options.model("tokenizer-stage1")["tokenizer"]).eval().to(machine.device)
    tokenizer.card = {"digest": "0" * 64}
    with TemporaryDirectory(prefix="alitok-bench-") as folder:
        pictures = write_pictures(Path(folder) / "pictures", ENCODED[machine.device.type])
        source = open_source(str(pictures), "train", val_fraction=0.0)
        plain = crop_by_crop(tokenizer, source, machine)
        one = torch.rand(1, 3, tokenizer.image_size, tokenizer.image_size, device=machine.device)
        flops = flops_of(lambda: tokenizer.encode(one))
        for precision in options.precisions:
            name = "bf16" if precision == "bfloat16" else "32"
            make = partial(
                tokenize,
                tokenizer,
                source,
                Path(folder) / precision,
                batch=256 if machine.cuda else 20,
                workers=decoding_workers(None, machine.device),
                precision=name,
            )
            pace = if_it_fits(make)
            yield Row(
                f"tokenizing-{precision}",
                None if pace is None else pace.crops / pace.seconds,
                "crops/s",
                plain,
                machine.peak(precision) / flops,
                f"{precision} products",
                notes=None if pace is None else {"waiting_for_images": pace.waiting / pace.seconds},
            )


def crop_by_crop(tokenizer: Any, source: Source, machine: Machine) -> float:
    """Crops per second when each is read, cut and encoded separately, in float32."""
    side = crop_recipe(tokenizer.image_size, "ten")["resize"]

    def crop(view: int) -> None:
        picture, _ = source[0]
        tokenizer.encode(ten_crop(picture, tokenizer.image_size, side)[view : view + 1].to(machine.device) / 255)

    crop(0)
    start = wait(machine.device)
    for view in range(4):
        crop(view)
    return 4 / (wait(machine.device) - start)


def flops_of(function: Any) -> float:
    """FLOPs of the matrix products and convolutions of a call."""
    ledger = Ledger()
    with ledger, torch.no_grad():
        function()
    return float(sum(ledger.flops.values()))


class RandomInception:
    """An extractor as costly as the 2015 Inception: torchvision's Inception v3 with random weights."""

    name, digest, resize, stand_in = "random Inception v3", "0" * 64, "bilinear to 299 x 299", True
    num_features, num_spatial = 2048, 0

    def __init__(self, device: torch.device) -> None:
        from torchvision.models import inception_v3

        torch.manual_seed(0)
        network = inception_v3(weights=None, init_weights=False, aux_logits=False)
        network.fc = nn.Identity()
        self.device, self.network = device, network.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        check_images(images)
        pixels = (resize_as_tensorflow(images.to(self.device).float(), 299) - 128) / 128
        with float32_products(tf32=False):  # as the real one
            pooled = self.network(pixels)
        return Features(pooled, F.softmax(pooled[:, :1008], dim=1))


def evaluation(options: Options) -> Iterator[Row]:
    """Row `evaluation-float32`: Inception features and statistics of PNG files; the baseline is one file at a time."""
    machine = options.machine
    extractor = RandomInception(machine.device)
    count = MEASURED[machine.device.type]
    with TemporaryDirectory(prefix="alitok-bench-") as name:
        folder = Path(name)
        pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=stream("bench", "png")).numpy()
        for index in range(count):
            picture = Image.fromarray(np.roll(pixels, index, axis=0)).resize((256, 256), Image.Resampling.BILINEAR)
            picture.save(folder / f"{index:06d}.png")
        images = FolderImages(folder)
        batch = 128 if machine.cuda else 16
        extractor(images.load(range(batch)))
        files = images.files[: count // 6]
        plain = one_at_a_time(files, extractor, machine)
        start = wait(machine.device)
        fits = if_it_fits(partial(measure, images, extractor, batch)) is not None
        ours = count / (wait(machine.device) - start) if fits else None
        limit = machine.float32 / flops_of(lambda: extractor(images.load(range(1))))
        yield Row("evaluation-float32", ours, "images/s", plain, limit, "float32 products")


def one_at_a_time(files: Sequence[Path], extractor: RandomInception, machine: Machine) -> float:
    """Images per second when each is read and measured separately."""
    statistics = FeatureStatistics(extractor.num_features)
    start = wait(machine.device)
    for file in files:
        with Image.open(file) as picture:
            pixels = to_tensor(picture.convert("RGB"))
        statistics.update(extractor(pixels[None]).pooled)
    return len(files) / (wait(machine.device) - start)

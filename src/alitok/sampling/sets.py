"""Sets of samples on disk: their settings, and drawing that processes share and that resumes after a kill.

Drawn images are stored in a hidden folder next to the output (`.samples.npz.partial`), with the settings that decide
them; the output appears when all images are drawn.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alitok.common.digest import module_digest
from alitok.common.distributed import all_or_none, all_stack, group_alone_in, rank, world_size
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.files import atomic_file, renamable, write_json
from alitok.common.images import to_uint8
from alitok.common.progress import counter
from alitok.common.work import Work, difference, missing_runs, once, read_settings, run_files, run_name
from alitok.evaluation.sidecar import SIDECAR
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.guidance import guidance_of
from alitok.sampling.images import ImageSampler, largest_batch
from alitok.sampling.reveal import reveal_for

# An output with one of these suffixes cannot be a folder.
FILE_SUFFIXES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".zip", ".json")
# Settings that do not decide the images.
NOT_DECIDING = ("name", "class_names", "drawn_with", "alitok")


class SampleSet:
    """`count` images that are written as an .npz (`arr_0`), a folder of PNG or a .png grid.

    Args:
        out: the output; its suffix decides the format.
        settings: everything that decides the images, ready for JSON; written as `samples.json` inside the folder, or
            as `NAME.json` next to `NAME.npz`. Not written for a grid.

    Raises:
        BadInput: an unsuitable suffix, or an output that may not be replaced.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.count, self.size = int(settings["count"]), int(settings["image_size"])
        if out.suffix.lower() in FILE_SUFFIXES:
            raise BadInput(f"--out {out} must be a .png grid, an .npz file or a folder.")
        self.kind = {".png": "grid", ".npz": "npz"}.get(out.suffix.lower(), "folder")
        self.out = out = renamable(out) if self.kind == "folder" else out
        target = renamable(out)  # a file may be a link to another disk
        self.partial = target.parent / f".{target.name}.partial"
        self.work = Work(self.partial, settings, "an unfinished set of samples", SIDECAR, NOT_DECIDING)
        self.sidecar = out / SIDECAR if self.kind == "folder" else out.with_suffix(".json")
        if self.done():
            return
        if self.kind == "folder" and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadInput(f"--out {out} exists and is no empty folder; name another.")
        if self.kind != "folder" and out.is_dir():
            raise BadInput(f"--out {out} is a folder; name another file.")
        if self.kind == "npz" and self.sidecar.exists() and "num_classes" not in (read_settings(self.sidecar) or {}):
            raise BadInput(f"--out {out} would replace {self.sidecar}, which describes no samples; name another.")

    def done(self) -> bool:
        """Whether the output exists already, with the same settings."""
        return (
            self.kind != "grid"
            and self.out.exists()
            and not difference(read_settings(self.sidecar), self.settings, NOT_DECIDING)
        )

    def start(self, drawn_with: dict[str, Any] | None = None) -> None:
        """Make the hidden folder, or resume from the existing one. For one process.

        Args:
            drawn_with: `batch` and `device` of this run; the settings list those of every run.

        Raises:
            BadInput: the folder holds images of other settings, or cannot be written.
        """
        self.work.begin()
        held = self.work.held() or {}
        kinds = held.get("drawn_with", [])
        if drawn_with is not None and drawn_with not in kinds:
            kinds = [*kinds, drawn_with]
            write_json(self.work.record, self.settings | {"drawn_with": kinds})
        if len(kinds) > 1 and any(kind["device"] != "cpu" for kind in kinds):
            print(
                f"{self.out} is drawn in {len(kinds)} ways (batch and device, see drawn_with in {SIDECAR}): on a GPU"
                " another batch or card gives other images for some of the same numbers."
            )

    def drawn(self) -> list[int]:
        """Indices of the images in the hidden folder."""
        indices = [index for run, _ in run_files(self.partial, ".npy") for index in run]
        return indices + sorted(int(file.stem) for file in self.partial.glob("[0-9]*.png"))

    def missing(self, batch: int) -> list[range]:
        """Indices still to be drawn, as runs of at most `batch` consecutive ones."""
        return missing_runs(self.drawn(), self.count, batch)

    def write(self, start: int, images: Tensor) -> None:
        """Store images start, start + 1, ...: uint8 (B, 3, H, W)."""
        if self.kind == "folder":
            from torchvision.io import encode_png

            def save(index: int, image: Tensor) -> None:
                with atomic_file(self.partial / f"{index:06d}.png") as temporary:
                    temporary.write_bytes(encode_png(image).numpy().tobytes())

            with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as savers:  # one packs 70 images a second
                list(savers.map(save, range(start, start + len(images)), images.cpu()))
            return
        with atomic_file(self.partial / f"{run_name(range(start, start + len(images)))}.npy") as temporary:
            # contiguous on the images' device: `save` would walk the strides byte by byte
            np.save(temporary, images.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def finish(self, grid: Callable[[Tensor], None] | None = None) -> None:
        """Write the output and remove the hidden folder. For one process, when nothing is missing.

        Args:
            grid: saves a grid of uint8 images (count, 3, H, W).

        Raises:
            BadInput: images are missing, or the output cannot be written.
        """
        if absent := self.missing(self.count):
            lacking = sum(len(run) for run in absent)
            raise BadInput(f"{self.partial} lacks {lacking:,} of {self.count:,} images: give the same command again.")
        for leftover in self.partial.glob(".*"):  # half-written files of a process that was killed
            leftover.unlink()
        if self.kind == "folder":
            self.partial.replace(self.out)
            return
        if self.kind == "npz":
            self.sidecar.unlink(missing_ok=True)  # never next to images that it does not describe
            self._write_npz()
            with atomic_file(self.sidecar) as temporary:
                shutil.copyfile(self.partial / SIDECAR, temporary)
        elif grid is not None:
            grid(torch.from_numpy(np.concatenate(list(self._arrays()))).permute(0, 3, 1, 2))
        self.discard()

    def discard(self) -> None:
        """Remove the hidden folder, under another name first: a kill must not leave half of it in the way."""
        doomed = self.partial.with_name(f"{self.partial.name}.old")
        if self.partial.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
            self.partial.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _arrays(self) -> Iterator[Any]:
        """Images 0 .. count - 1 as uint8 arrays (M, H, W, 3); each once, even if it was drawn twice."""
        for file, skip in once(run_files(self.partial, ".npy")):
            yield np.load(file)[skip:]

    def _write_npz(self) -> None:
        """Write shard after shard into the archive, so that 50,000 images need not fit into memory."""
        whole = self.partial / "whole.npz"  # in the hidden folder, which is cleaned up after a kill
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, self.size, self.size, 3)}
        with (
            atomic_file(whole) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            np.lib.format.write_array_header_1_0(member, header)
            for array in self._arrays():
                member.write(array.data)
        whole.replace(renamable(self.out))


CYCLING = "cycling"


def class_names(generator: Generator) -> list[str]:
    """Names of the generator's classes; their numbers if the card has none."""
    return generator.card.get("class_names") or [str(index) for index in range(generator.num_classes)]


def set_settings(
    generator: Generator,
    tokenizer: Tokenizer,
    names: tuple[str, str],
    draw: Draw,
    count: int,
    classes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Everything that decides a set of images, as it is written next to them.

    Args:
        names: names of the generator and the tokenizer.
        classes: class of each image; None = cycling through all.

    Raises:
        BadInput: an unknown schedule.
    """
    guidance_of(draw)
    reveal = reveal_for(generator, draw)
    if reveal is not None and draw.sampler is None:  # the generator's, whose defaults may change
        own = {"class_path": generator.sampler, "init_args": vars(reveal)}
        draw = replace(draw, sampler=own)
    known = class_names(generator)
    return {
        "count": count,
        "generator": {
            "name": names[0],
            "digest": generator.card["digest"],
            **settings_of(generator.causal and not generator.output.has_logits, generator, "head"),
        },
        "tokenizer": {
            "name": names[1],
            "digest": tokenizer.card["digest"],
            "decoder": module_digest(tokenizer.decoder),  # the digest above covers encoder and codes only
            **settings_of(tokenizer.decoder.generative, tokenizer, "decoder"),
        },
        **draw.record(),
        "classes": CYCLING if classes is None else list(classes),
        "num_classes": len(known),
        "class_names": known,
        "quantisation": "truncated",
        "image_size": tokenizer.image_size,
        "alitok": version("alitok"),
    }


def settings_of(decide: bool, model: Any, argument: str) -> dict[str, Any]:
    """An argument of an artifact's model, if settings that no weight holds decide what the part draws."""
    arguments = getattr(model, "block", {}).get("init_args") or {}
    return {"settings": arguments[argument]} if decide and argument in arguments else {}


def draw_set(
    generator: Generator,
    tokenizer: Tokenizer,
    out: Path,
    settings: dict[str, Any],
    batch: int | None = None,
    grid: Callable[[Tensor], None] | None = None,
) -> bool:
    """Draw the images of `settings` (from `set_settings`) to `out`, each process its share. A collective.

    Resumes an earlier run with the same settings; saves a batch while the next is drawn.

    Args:
        batch: images drawn together; None = the most that fit.
        grid: as for `SampleSet.finish`.

    Returns:
        False if the set existed already.

    Raises:
        BadInput: as `SampleSet`, on every process.
    """
    images = SampleSet(out, settings)
    if images.done():
        if rank() == 0 and not difference(images.work.held(), settings, NOT_DECIDING):
            images.discard()  # left by a start that was killed at its end
        return False
    draw = Draw.of(settings)
    if batch is None:
        most = common_batch(generator, tokenizer, draw)
        batch = min(most, -(-settings["count"] // world_size()))
    with group_alone_in(images.partial):
        device = generator.embeddings.weight.device
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        drawn_with = {"batch": batch, "device": kind}
        reveal = reveal_for(generator, draw)
        tokens = reveal.steps if reveal is not None else draw.keep or generator.num_tokens
        mine = images.work.share(partial(images.missing, batch), partial(images.start, drawn_with))
        with all_or_none(), counter("Sampling", len(mine) * tokens) as advance, ThreadPoolExecutor(1) as saver:
            sampler = ImageSampler(generator, tokenizer, draw)
            total = settings["num_classes"]
            classes = settings["classes"]
            labels = [[index % total if classes == CYCLING else classes[index] for index in run] for run in mine]
            saving: Future[None] | None = None
            drawn = sampler.sample(zip(mine, labels, strict=True), lambda step: advance(1), batch)
            for indices, _, pixels in drawn:
                if saving is not None:
                    saving.result()
                saving = saver.submit(images.write, indices[0], to_uint8(pixels))
            if saving is not None:
                saving.result()
        with all_or_none():
            if rank() == 0:
                images.finish(grid)
    return True


def common_batch(generator: Generator, tokenizer: Tokenizer, draw: Draw) -> int:
    """The largest batch that fits on every process; the same on each, since the shares depend on it. A collective."""
    device = generator.embeddings.weight.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    most = largest_batch(generator, tokenizer, draw, free)
    return int(all_stack(torch.tensor(most)).min())

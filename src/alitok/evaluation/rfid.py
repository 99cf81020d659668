"""rFID and related metrics: a tokenizer's reconstructions against the original validation images."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from alitok.common.digest import module_digest, tokenizer_digest
from alitok.common.distributed import all_or_none, rank
from alitok.common.images import Quantization, save_grid, to_uint8
from alitok.common.progress import bar
from alitok.data.found import announce
from alitok.data.sources import (
    USUAL_SHARE,
    NoValidation,
    Source,
    held_out_in_training,
    hold_out,
    limit,
    open_source,
    trained_on,
)
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_parts
from alitok.evaluation.image_sets import Reader, SourceImages
from alitok.evaluation.protocol import is_spec, open_spec, pick_extractor
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.record import ADM, EvaluationRecord, ImagesRecord, Named, reasons_against_reconstruction
from alitok.evaluation.reference import (
    VALIDATION,
    Reference,
    file_reference,
    refuse_for_reconstructions,
    set_reference,
)
from alitok.evaluation.tokens import CodebookUsage
from alitok.models.tokenizer import Tokenizer

SHOWN = 8  # pictures in --picture


class Extra(Protocol):
    """A metric that is measured with rFID, on the same images.

    Attributes:
        titles: titles of the pictures that `update` returns.
        reasons: why its numbers are not comparable with published ones.
    """

    titles: list[str]
    reasons: list[str]

    def update(self, tokenizer: Tokenizer, latents: Tensor, index: Tensor, quantization: Quantization) -> list[Tensor]:
        """Add images, given as latents (B, N, D) and indices (B,) -> pictures to show, uint8 (B, 3, H, W) each."""

    def compute(self, real: FeatureStatistics) -> dict[str, Any]:
        """Numbers by name, against the statistics of the originals. A collective."""


@dataclass(frozen=True)
class Reconstructions:
    """What is reconstructed, and how it is measured.

    Attributes:
        tokenizer: its name in the record.
        data: data spec whose validation split is reconstructed.
        reference: .npz, a folder of PNG, or a data spec; None for the images themselves.
        extractor: a file, or "inception".
        protocol: adm, or a mode of clean-fid.
        count: largest number of images.
        quantization: how reconstructions become bytes: truncated (None) or rounded.
        picture: path of a PNG of eight images.
        batch: images measured together.
    """

    tokenizer: str
    data: str
    reference: str | None = None
    extractor: str = "inception"
    protocol: str = ADM
    count: int | None = None
    quantization: str | None = None
    picture: Path | None = None
    batch: int = 32


def _validation(args: Reconstructions, tokenizer: Tokenizer) -> tuple[Source, bool, str | None]:
    """The images, whether training held them out of its split, and a sentence if it trained on some of them.

    If there is no validation split, the images that the tokenizer's training held out are held out again.
    """
    size = tokenizer.image_size
    try:
        return open_source(args.data, "val", size=size, count=args.count, val_fraction=0), False, None
    except NoValidation:
        whole = open_source(args.data, "train", size=size, val_fraction=0)
    then = held_out_in_training(str(tokenizer.card.get("data", "")), whole.name)
    source = hold_out(whole, "val", then.share if then is not None and then.number else USUAL_SHARE, 0)
    changed, held_out = trained_on(then, len(whole), len(source)), then is None or then.number > 0
    return source if args.count is None else limit(source, args.count, 0), held_out, changed


def evaluate_reconstructions(
    args: Reconstructions,
    tokenizer: Tokenizer,
    device: torch.device,
    extra: Callable[[Extractor, Tokenizer], Extra] | None = None,
) -> EvaluationRecord:
    """rFID, PSNR, SSIM and codebook usage of a tokenizer on validation images. A collective.

    Raises:
        BadInput: anything that cannot be read or does not fit.
    """
    extractor = pick_extractor(args.protocol, args.extractor, device)
    size = tokenizer.image_size
    measure = None if extra is None else extra(extractor, tokenizer)
    reference: Reference | None = None
    if args.reference is not None:
        if is_spec(args.reference):
            reference = set_reference(*open_spec(args.reference, "val", size))
        else:
            reference = file_reference(Path(args.reference), extractor)
        refuse_for_reconstructions(reference, size)
        reference = reference.measured(extractor, args.batch, features=False, progress=bar("Reference"))
    source, held_out, changed = _validation(args, tokenizer)
    announce(args.data, {"val": source})
    if changed is not None and rank() == 0:
        print(f"alitok: {args.tokenizer}: {changed}.", file=sys.stderr)
    images = SourceImages(source, size)
    quantization: Quantization = "round" if args.quantization == "rounded" else "truncate"
    metrics = ReconstructionMetrics(extractor, quantization, None if reference is None else reference.pooled)
    codebook = CodebookUsage(tokenizer.codebook_size, tokenizer.sub_codes)
    reader = Reader(images, args.batch)
    shown: list[Tensor] = []  # this process's first pictures, (columns, 3, H, W) each
    with all_or_none(), torch.inference_mode():
        for index, pixels in bar("Reconstructions")(reader):
            originals = pixels.to(device).float() / 255
            latents = tokenizer.encode_latents(originals)
            ids = tokenizer.ids_of(latents)
            decoded = tokenizer.decode(ids, indices=index.tolist())
            metrics.update(originals, decoded)
            codebook.update(ids)
            ends = [] if measure is None else measure.update(tokenizer, latents, index, quantization)
            if args.picture is not None and len(shown) < SHOWN:
                columns = [pixels, to_uint8(decoded, quantization), *ends]
                shown += torch.stack([column.cpu() for column in columns], dim=1)
    if args.picture is not None and rank() == 0:
        titles = ["original", "decoded"]
        titles += [] if measure is None else measure.titles
        save_grid(torch.cat(shown[:SHOWN]), args.picture, len(titles), titles)
    digest = reader.digest()
    results: dict[str, Any] = {**metrics.compute(), **codebook.compute()}
    real = metrics.real.reduce() if metrics.reference is None else metrics.reference
    results |= frechet_parts(real, metrics.reconstructed.reduce(), "rfid")
    reasons = ([] if changed is None else [changed]) + ([] if measure is None else list(measure.reasons))
    if measure is not None:
        results |= measure.compute(real)
    return EvaluationRecord(
        measure="rFID",
        samples=ImagesRecord(source.name, digest, images.count, size),
        reference=Named(source.name, digest) if reference is None else Named(reference.name, reference.digest),
        extractor=Named(extractor.name, extractor.digest),
        protocol=args.protocol,
        resize=extractor.resize,
        quantisation=args.quantization or "truncated",
        tokenizer={
            "name": args.tokenizer,
            "digest": tokenizer_digest(tokenizer),
            "weights": module_digest(tokenizer),
            # no weight holds the steps and solver of a generative decoder
            **(
                {"decoder": json.dumps(tokenizer.block["init_args"]["decoder"])} if tokenizer.decoder.generative else {}
            ),
        },
        alitok=version("alitok"),
        **results,
        reasons=reasons
        + reasons_against_reconstruction(
            images=images.count,
            own_images=reference is None,
            made_of_known=reference is not None and reference.made_of == VALIDATION,
            held_out=held_out,
            extractor=extractor,
            protocol=args.protocol,
        ),
    )

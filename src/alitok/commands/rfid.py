"""rFID and what goes with it: a tokenizer's reconstructions against the validation images that they are of."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alitok.artifacts.folder import load_tokenizer
from alitok.common.digest import module_digest, tokenizer_digest
from alitok.common.distributed import all_or_none, rank
from alitok.common.images import save_grid
from alitok.common.progress import bar
from alitok.data.found import announce
from alitok.data.reading import crop
from alitok.data.sources import NoValidation, open_source
from alitok.evaluation.codebook import CodebookUsage
from alitok.evaluation.image_sets import Reader, SourceImages
from alitok.evaluation.protocol import is_spec, open_spec, pick_extractor
from alitok.evaluation.quantise import Quantisation, to_uint8
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.record import EvaluationRecord, ImagesRecord, Named, reasons_against_reconstruction
from alitok.evaluation.reference import (
    VALIDATION,
    Reference,
    file_reference,
    refuse_for_reconstructions,
    set_reference,
)
from alitok.ideas.perturbation import PerturbedFID, check_swappable, perturb

SHOWN = 8  # pictures of --picture


def evaluate_reconstructions(args: argparse.Namespace, device: torch.device) -> EvaluationRecord:
    """rFID, with --pfid pFID, PSNR, SSIM and codebook use of a tokenizer on validation images; a collective.

    Raises:
        BadInput: anything that cannot be read or does not fit.
    """
    extractor = pick_extractor(args.protocol, args.extractor, device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    size = tokenizer.image_size
    perturbed = PerturbedFID(extractor, tokenizer.codebook_size) if args.pfid else None
    if perturbed is not None:
        check_swappable(tokenizer.quantizer, max(perturbed.deltas))
    reference: Reference | None = None
    if args.reference is not None:
        if is_spec(args.reference):
            reference = set_reference(*open_spec(args.reference, "val", size))
        else:
            reference = file_reference(Path(args.reference), extractor)
        refuse_for_reconstructions(reference, size)
        reference = reference.measured(extractor, args.batch, features=False, progress=bar("Reference"))
    held_out = False
    try:
        source = open_source(args.data, "val", size=size, count=args.count, val_fraction=0)
    except NoValidation:
        source, held_out = open_source(args.data, "val", size=size, count=args.count), True
    announce(args.data, {"val": source})
    images = SourceImages(source, size, crop)
    quantisation: Quantisation = "round" if args.quantisation == "rounded" else "truncate"
    metrics = ReconstructionMetrics(extractor, quantisation, None if reference is None else reference.pooled)
    codebook = CodebookUsage(tokenizer.codebook_size, tokenizer.sub_codes)
    reader = Reader(images, args.batch)
    shown: list[Tensor] = []  # of this process's first pictures: (columns, 3, H, W)
    with all_or_none(), torch.inference_mode():
        for index, pixels in bar("Reconstructions")(reader):
            originals = pixels.to(device).float() / 255
            latents = tokenizer.encode_latents(originals)
            ids = tokenizer.ids_of(latents)
            decoded = tokenizer.decode(ids, indices=index.tolist())
            metrics.update(originals, decoded)
            codebook.update(ids)
            ends = [] if perturbed is None else perturb(perturbed, tokenizer, latents, index, quantisation)
            if args.picture is not None and len(shown) < SHOWN:
                columns = [pixels, to_uint8(decoded, quantisation), *ends]
                shown += torch.stack([column.cpu() for column in columns], dim=1)
    if args.picture is not None and rank() == 0:
        titles = ["original", "decoded"]
        if perturbed is not None:
            titles += [f"{s.alpha:.0%} of {s.delta}" for s in (perturbed.settings[0], perturbed.settings[-1])]
        save_grid(torch.cat(shown[:SHOWN]), args.picture, len(titles), titles)
    digest = reader.digest()
    results: dict[str, Any] = {**metrics.compute(), **codebook.compute()}
    reasons = []
    if perturbed is not None:
        real = metrics.real.reduce() if metrics.reference is None else metrics.reference
        results |= perturbed.compute(real)
        if not perturbed.published:
            reasons = [f"pFID has no published deltas for a codebook of {tokenizer.codebook_size:,} codes"]
    return EvaluationRecord(
        measure="rFID",
        samples=ImagesRecord(source.name, digest, images.count, size),
        reference=Named(source.name, digest) if reference is None else Named(reference.name, reference.digest),
        extractor=Named(extractor.name, extractor.digest),
        protocol=args.protocol,
        resize=extractor.resize,
        quantisation=args.quantisation or "truncated",
        tokenizer={
            "name": str(args.tokenizer),
            "digest": tokenizer_digest(tokenizer),
            "weights": module_digest(tokenizer),
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

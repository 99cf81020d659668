"""rFID and what goes with it: a tokenizer's reconstructions against the validation images that they are of."""

import argparse
from pathlib import Path
from typing import Any

import torch

from alitok import __version__
from alitok.artifacts.digest import module_digest, tokenizer_digest
from alitok.artifacts.folder import load_tokenizer
from alitok.commands.image_specs import bar, crop, is_spec, open_spec, pick_extractor
from alitok.common.distributed import all_or_none
from alitok.data.sources import NoValidation, open_source
from alitok.evaluation.codebook import CodebookUsage
from alitok.evaluation.image_sets import Reader, SourceImages
from alitok.evaluation.quantise import Quantisation
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.record import EvaluationRecord, ImagesRecord, Named, reasons_against_reconstruction
from alitok.evaluation.reference import (
    VALIDATION,
    Reference,
    file_reference,
    refuse_for_reconstructions,
    set_reference,
)


def evaluate_reconstructions(args: argparse.Namespace, device: torch.device) -> EvaluationRecord:
    """rFID, PSNR, SSIM and codebook use of a tokenizer on validation images; a collective.

    Raises:
        BadInput: anything that cannot be read or does not fit.
    """
    extractor = pick_extractor(args, device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    size = tokenizer.image_size
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
    images = SourceImages(source, size, crop)
    quantisation: Quantisation = "round" if args.quantisation == "rounded" else "truncate"
    metrics = ReconstructionMetrics(extractor, quantisation, None if reference is None else reference.pooled)
    codebook = CodebookUsage(tokenizer.codebook_size, getattr(tokenizer.quantizer, "sub_codes", None))
    reader = Reader(images, args.batch)
    with all_or_none(), torch.inference_mode():
        for _, pixels in bar("Reconstructions")(reader):
            originals = pixels.to(device).float() / 255
            ids = tokenizer.encode(originals)
            metrics.update(originals, tokenizer.decode(ids))
            codebook.update(ids)
    digest = reader.digest()
    results: dict[str, Any] = {**metrics.compute(), **codebook.compute()}
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
        alitok=__version__,
        **results,
        reasons=reasons_against_reconstruction(
            images=images.count,
            own_images=reference is None,
            made_of_known=reference is not None and reference.made_of == VALIDATION,
            held_out=held_out,
            extractor=extractor,
            protocol=args.protocol,
        ),
    )

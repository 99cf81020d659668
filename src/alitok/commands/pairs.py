"""Make pairs for the post-training of a decoder: real images, and a generator's tokens for each.

Every image of the training split is encoded. The generator then draws its tokens; with probability --sigma the true
token replaces a drawn one. The output is a token cache of two views: the drawn tokens, and the tokens of the picture
that they decode to. After an interruption the same command continues. All tokens of an unreadable picture are drawn.
"""

import argparse
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from alitok.commands.options import add_guidance_arguments, add_speed_arguments, draw_of
from alitok.common.errors import BadInput

log = logging.getLogger("alitok")
# Settings of the draw that decide the tokens, except the precision; the last two are there only if they are unusual.
DECIDES = ["generator", "tokenizer", "guidance", "power", "schedule", "temperature", "seed", "quantisation", "compiled"]
DECIDES += ["sampler", "noise"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generator", required=True, metavar="DIR", help="generator artifact")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer artifact to be post-trained")
    parser.add_argument("--data", required=True, metavar="SPEC", help="data spec, its training split")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the pairs; appear when they are whole")
    parser.add_argument("--sigma", type=float, default=0.7, metavar="SHARE", help="share of true tokens (default 0.7)")
    parser.add_argument("--count", type=int, metavar="N", help="take N images at most (the paper: 200,000)")
    add_guidance_arguments(parser)
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the true tokens and the draws (default 0)"
    )
    parser.add_argument(
        "--images-per-shard", type=int, default=4096, metavar="N", help="saved at a time (default 4096)"
    )
    parser.add_argument(
        "--max-skipped", type=int, default=10, metavar="N", help="unreadable images of a process (default 10)"
    )
    add_speed_arguments(parser)
    parser.epilog = (
        "example: alitok pairs --generator runs/demo/generator/artifact --tokenizer runs/demo/stage2/artifact"
        " --data shapes --count 1000 --out runs/demo/pairs"
    )


def run(args: argparse.Namespace) -> None:
    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.distributed import all_or_none, group_alone_in, process_group, rank
    from alitok.data.encoding import is_finished, job
    from alitok.data.found import announce
    from alitok.data.sources import describe_source, open_source
    from alitok.data.token_shards import TokenShards
    from alitok.ideas.post_training import check_sigma
    from alitok.sampling.sets import common_batch, set_settings

    check_sigma(args.sigma)
    if args.max_skipped < 0:
        raise BadInput(f"--max-skipped must be at least 0, not {args.max_skipped}.")
    if args.window != 1:
        raise BadInput("Pairs have true tokens among the drawn ones and are drawn one token a pass: take --window out.")
    with process_group(pick_device(args.device), timedelta(days=7)) as device:
        with all_or_none():
            generator, tokenizer = load_generator(args.generator, device), load_tokenizer(args.tokenizer, device)
            check_pair(generator, tokenizer)
            source = open_source(args.data, "train", size=tokenizer.image_size, count=args.count)
            announce(args.data, {"train": source})
            check_classes(source.class_names, generator, args)
            names = (Path(args.generator).name, Path(args.tokenizer).name)
            draw = draw_of(args, generator.card)
            settings = set_settings(generator, tokenizer, names, draw, len(source))
            wanted = job(tokenizer, source, "center", args.precision)
            wanted["recipe"] |= {"sigma": args.sigma, **{key: settings[key] for key in DECIDES if key in settings}}
            finished = is_finished(args.out, wanted, source)
        if not finished:
            shards = TokenShards(
                args.out,
                wanted,
                len(source),
                codebook_size=tokenizer.codebook_size,
                class_names=source.class_names,
                images_per_shard=args.images_per_shard,
            )
            with group_alone_in(shards.partial):
                mine = shards.share()
                batch = args.batch or common_batch(generator, tokenizer, draw)
                with all_or_none():
                    make(shards, mine, generator, tokenizer, source, draw, args.sigma, batch, args.max_skipped)
                with all_or_none():
                    if rank() == 0:
                        shards.finish({**wanted, "source_description": describe_source(source)})
        if rank() == 0:
            print(f"{args.out}: {len(source):,} pairs" + (", all there already" if finished else ""))


def check_classes(names: list[str], generator: Any, args: argparse.Namespace) -> None:
    """Check that the data's classes are the generator's.

    Raises:
        BadInput: there are more, or they have other names.
    """
    known = generator.card.get("class_names") or []
    other = next((number for number, pair in enumerate(zip(names, known, strict=False)) if pair[0] != pair[1]), None)
    if len(names) > generator.num_classes:
        what = f"has {len(names)} classes, the generator {generator.num_classes}"
    elif other is not None:
        what = f"has {names[other]!r} as class {other}, the generator {known[other]!r}"
    else:
        return
    raise BadInput(f"--data {args.data} {what}: take the data that the generator was trained on.")


def make(
    shards: Any,
    mine: list[int],
    generator: Any,
    tokenizer: Any,
    source: Any,
    draw: Any,
    sigma: float,
    batch: int,
    max_skipped: int,
) -> None:
    """Draw and write these shards. No collective.

    Post-training takes the row of an image by its number. An unreadable image therefore has a row too, without true
    tokens. It is never asked for: training puts another image in its place.

    Args:
        draw: settings of the draw.
        batch: images drawn together.
        max_skipped: the most images that this process may fail to read.

    Raises:
        BadInput: more images than `max_skipped` cannot be read.
    """
    import torch

    from alitok.common.images import to_uint8
    from alitok.common.progress import counter
    from alitok.data.encoding import check_skipped
    from alitok.data.reading import read_crops
    from alitok.ideas.post_training import MixedSampler
    from alitok.sampling.generate import Sampler

    device, size = generator.embeddings.weight.device, tokenizer.image_size
    sampler = Sampler(generator, draw)
    mixed = MixedSampler(sampler, sigma)
    unreadable = 0
    with counter("Pairs", sum(len(shards.images(shard)) for shard in mine)) as advance, torch.inference_mode():
        for shard in mine:
            images = shards.images(shard)
            labels: list[int] = []
            ids: list[Any] = []
            for start in range(images.start, images.stop, batch):
                chosen = range(start, min(start + batch, images.stop))
                read = read_crops(source, chosen, size, skip=True)
                for number, skip in enumerate(read.skipped, start=unreadable + 1):
                    log.warning("All tokens of image %d are drawn (%d so far): %s", skip.image, number, skip.reason)
                    check_skipped(number, max_skipped, skip.reason)
                unreadable += len(read.skipped)
                blank = [skip.image for skip in read.skipped]
                whole = [image for image in chosen if image not in blank]
                drawn: dict[int, torch.Tensor] = {}
                classes = dict(zip(whole, read.labels.tolist(), strict=True))
                if whole:
                    true = tokenizer.encode(read.images.to(device).float() / 255)[:, : generator.num_tokens]
                    drawn |= zip(whole, mixed.sample(true, read.labels, whole), strict=True)
                if blank:
                    known = torch.from_numpy(source.class_labels()[blank])
                    classes |= zip(blank, known.tolist(), strict=True)
                    drawn |= zip(blank, sampler.sample(known, blank), strict=True)
                tokens = torch.stack([drawn[image] for image in chosen])
                decoded = to_uint8(tokenizer.decode(tokens, draw.seed, chosen))
                again = tokenizer.encode(decoded.float() / 255)[:, : generator.num_tokens]
                labels += [classes[image] for image in chosen]
                ids += list(torch.stack([tokens, again], dim=1).cpu().numpy())
                advance(len(chosen))
            shards.write(shard, labels, ids, [])

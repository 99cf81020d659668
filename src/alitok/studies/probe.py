"""How predictable tokens are: their entropies, and the accuracy of a small generator after a given budget."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from alitok.data.datamodule import ImageNetDataModule
    from alitok.data.token_cache import TokenCache

BLOCK = 4096


def probe(
    cache: str | Path,
    val_cache: str | Path | None = None,
    *,
    steps: int = 1000,
    batch: int = 64,
    width: int = 256,
    depth: int = 6,
    prefix: int | None = None,
    images: int = 50_000,
    held_out: int = 2_000,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the tokens of a cache.

    Args:
        cache: token cache folder; 5 % of it are held out if there is no `val_cache`.
        steps, batch: training budget of the small generator.
        width, depth: its size; heads have 32 channels.
        prefix: number of prefix tokens before the square token grid; all of them if there is no grid; None = what
            remains after the largest square.
        images, held_out: largest numbers of images to train on and to measure.

    Returns:
        What `alitok probe --json` writes; entropies and losses in nats. If tokens have sub-codes, accuracy is the share
        of right sub-codes, and a token's entropies and losses are sums over its sub-codes.

    Raises:
        BadInput: no readable cache, or a prefix that leaves no square grid.
    """
    from alitok.data.datamodule import ImageNetDataModule
    from alitok.data.sources import draw_some

    start = time.perf_counter()
    data = ImageNetDataModule(
        cache=str(cache),
        val_cache=None if val_cache is None else str(val_cache),
        global_batch=batch,
        micro_batch=min(batch, 64),
        seed=seed,
        count=images,
        val_count=held_out,
    )
    data.setup()
    tokens = data.token_cache
    assert tokens is not None
    num_prefix, side = layout(tokens.num_tokens, prefix)
    train, held = (data.splits[split].chosen for split in ("train", "val"))  # type: ignore[union-attr]
    known = tokens.codebook_size is not None  # training sets it, so that ids beyond it are refused
    codebook = tokens.codebook_size or highest_id(tokens, val_cache) + 1
    statistics = token_statistics(tokens, train, codebook)
    generator = train_generator(data, codebook, tokens.sub_codes, num_prefix, side, steps, width, depth, seed, device)
    held_metric = judge(generator, data.splits["val"].cache, held)  # type: ignore[union-attr]
    seen_metric = judge(generator, tokens, train[draw_some(len(train), min(len(held), len(train)), 0)])
    accuracy, nats = held_metric.by_position()
    return {
        "source": str(cache),
        "digest": tokens.digest,
        "images": len(train),
        "held_out": len(held),
        "tokens": tokens.num_tokens,
        "codebook_size": codebook,
        "sub_codes": tokens.sub_codes,
        "bits_per_token": tokens.sub_codes * math.log2(codebook),
        "bits_per_picture": tokens.num_tokens * tokens.sub_codes * math.log2(codebook),
        "codebook_size_known": known,
        **statistics,
        "generator": {
            "width": width,
            "depth": depth,
            "parameters": sum(p.numel() for p in generator.parameters()),
            "prefix": num_prefix,
        },
        "steps": steps,
        "batch": batch,
        "seed": seed,
        **held_metric.compute(),
        "nats_per_picture": float(nats.sum()),
        "explained_nats": statistics["entropy_per_picture"] - float(nats.sum()),
        "token_nats_train": seen_metric.compute()["token_nats"],
        "accuracy_by_position": accuracy.tolist(),
        "nats_by_position": nats.tolist(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def layout(num_tokens: int, prefix: int | None) -> tuple[int, int]:
    """(K, side) with K + side^2 = N tokens; the largest square if no prefix is given, none if the prefix is N.

    Raises:
        BadInput: the tokens after the prefix form no square.
    """
    if prefix == num_tokens:
        return num_tokens, 0
    side = math.isqrt(num_tokens if prefix is None else max(0, num_tokens - prefix))
    rest = num_tokens - side**2
    if side == 0 or (prefix is not None and (rest != prefix or prefix < 0)):
        raise BadInput(f"--prefix {prefix} leaves no square grid of the {num_tokens} tokens of an image.")
    return rest, side


def gather(cache: "TokenCache", images: "Tensor") -> "Tensor":
    """Ids (B, N) or (B, N, S) of the measured view."""
    import torch

    return cache.gather(images, torch.full_like(images, cache.evaluation_view))


def highest_id(cache: "TokenCache", val_cache: str | Path | None) -> int:
    """The largest id in any view, for a cache without the size of its codebook."""
    import torch

    from alitok.data.token_cache import TokenCache

    highest = 0
    for part in [cache] if val_cache is None else [cache, TokenCache(val_cache)]:
        for images in torch.arange(len(part)).split(BLOCK):
            for view in range(part.views):
                ids = part.gather(images, torch.full_like(images, view))
                if ids.min() < 0:
                    raise BadInput(f"Token cache {part.folder} has ids below 0.")
                highest = max(highest, int(ids.max()))
    return highest


def token_statistics(cache: "TokenCache", images: "Tensor", codebook_size: int) -> dict[str, Any]:
    """Usage, perplexity and entropies (nats) of one view of the images, over all positions.

    `entropy` is a token's entropy, `entropy_given_class` that given its image's class, `entropy_given_position` that
    given its position; `entropy_by_position` lists it, and `entropy_per_picture` is its sum. Each is a plug-in
    estimate, which is too low for few tokens, plus the correction (m - 1) / 2n for m codes seen in n tokens (Miller
    1955); the first two corrections are also returned, with the suffix `_bias`. `codes_by_position` is the number of
    codes seen at each position. With sub-codes, numbers of codes, usage and perplexity are means and entropies are
    sums; the sum exceeds a token's entropy if its sub-codes depend on one another.
    """
    import torch

    from alitok.evaluation.tokens import count_codes

    labels = cache.labels[images]
    sub_codes = cache.sub_codes
    counts = torch.zeros(sub_codes, codebook_size, dtype=torch.int64)
    class_entropy = class_bias = 0.0
    for label in labels.unique().tolist():  # a class at a time: C x V counts would not fit for large codebooks
        of_class = torch.zeros_like(counts)
        for part in images[labels == label].split(BLOCK):
            of_class += count_codes(gather(cache, part).reshape(-1, sub_codes), codebook_size)
        entropy, bias = summed_entropy(of_class)
        share = float(of_class[0].sum()) / (len(images) * cache.num_tokens)
        class_entropy += share * (entropy + bias)
        class_bias += share * bias
        counts += of_class
    entropy, bias = summed_entropy(counts)
    by_position = torch.zeros(cache.num_tokens * sub_codes, codebook_size, dtype=torch.int64)
    for part in images.split(BLOCK):
        by_position += count_codes(gather(cache, part).flatten(1), codebook_size)
    found = torch.tensor([plug_in_entropy(row) for row in by_position], dtype=torch.float64)
    each, position_bias = found.sum(1), sub_codes * float(found[:, 1].mean())
    entropies = each.view(-1, sub_codes).sum(1)
    codes = (by_position > 0).sum(1).view(-1, sub_codes).double().mean(1)
    return {
        "counted_tokens": int(counts[0].sum()),
        "codebook_usage": float((counts > 0).double().mean()),
        "codebook_perplexity": sum(math.exp(plug_in_entropy(row)[0]) for row in counts) / sub_codes,
        "entropy": entropy + bias,
        "entropy_bias": bias,
        "entropy_given_class": class_entropy,
        "entropy_given_class_bias": class_bias,
        "entropy_given_position": float(entropies.mean()),
        "entropy_given_position_bias": position_bias,
        "entropy_per_picture": float(entropies.sum()),
        "entropy_by_position": entropies.tolist(),
        "codes_by_position": codes.tolist(),
    }


def summed_entropy(counts: "Tensor") -> tuple[float, float]:
    """`plug_in_entropy`, summed over the rows of counts (M, V)."""
    entropies, biases = zip(*map(plug_in_entropy, counts), strict=True)
    return sum(entropies), sum(biases)


def plug_in_entropy(counts: "Tensor") -> tuple[float, float]:
    """Entropy (nats) of the frequencies of counts (V,), and Miller's correction."""
    import torch

    total = float(counts.sum())
    entropy = float(torch.special.entr(counts.double() / total).sum())
    return entropy, (int((counts > 0).sum()) - 1) / (2 * total)


def train_generator(
    data: "ImageNetDataModule",
    codebook_size: int,
    sub_codes: int,
    num_prefix: int,
    side: int,
    steps: int,
    width: int,
    depth: int,
    seed: int,
    device: str,
) -> Any:
    """Train the small generator with the training step of `alitok fit`; writes nothing. Returned in eval mode."""
    import torch

    from alitok.callbacks.progress import Progress
    from alitok.common.devices import pick_device
    from alitok.common.random import derive_seed
    from alitok.training.bare import bare_trainer
    from alitok.training.generator import GeneratorTraining
    from alitok.training.launch import quiet

    quiet()
    place = pick_device(device)
    kind = "models.generator.Generator" if sub_codes == 1 else "ideas.shared.sub_codes.SubCodeGenerator"
    block = {
        "class_path": f"alitok.{kind}",
        "init_args": {
            **({} if sub_codes == 1 else {"sub_codes": sub_codes}),
            "codebook_size": codebook_size,
            "num_classes": data.num_classes,
            "num_prefix": num_prefix,
            "grid": [side, side],
            "width": width,
            "depth": depth,
            "heads": width // 32,
            "hidden_multiple": 64,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "probe"))
        phases = {"main": {"steps": steps, "lr": [2e-3, 1e-4], "shape": "cosine"}}
        module = GeneratorTraining(block, phases, warmup_steps=min(50, steps // 4), seed=seed)
        trainer = bare_trainer(
            steps,
            accelerator="gpu" if place.type == "cuda" else place.type,
            devices=[place.index or 0] if place.type == "cuda" else 1,
            callbacks=[Progress()],
            enable_progress_bar=True,
            default_root_dir=data.cache,
        )
        trainer.fit(module, datamodule=data)
    return module.generator.to(place).eval()


def judge(generator: Any, cache: "TokenCache", images: "Tensor") -> Any:
    """`TokenAccuracy` of a generator on the measured view of some of a cache's images."""
    import torch

    from alitok.evaluation.tokens import TokenAccuracy

    device = next(generator.parameters()).device
    metric = TokenAccuracy(cache.num_tokens)
    with torch.inference_mode():
        for part in images.split(64):
            ids = gather(cache, part).to(device)
            metric.update(generator(ids, cache.labels[part].to(device)), ids)
    return metric

"""Every two ideas of experiments/ideas/ that share a base, laid over it: both act, or a sentence refuses the pair."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from generator_effects import (
    gft,
    guidance,
    masked,
    masked_bits,
    random_order,
    rear,
    reference_term,
    softcfg,
    sub_code_head,
)
from test_ideas import IDEAS, stacks
from tokenizer_effects import (
    Pair,
    bins,
    bottleneck,
    codes,
    flow,
    hieratok,
    holistic,
    kmeans,
    nestok,
    noise_decoder,
    post_training,
    quantizer,
    several_codebooks,
    shared_index,
    shift,
    shorter,
    splat,
    stacked,
    sub_codes,
    t2t,
    term,
    titok,
    token_schedule,
    windows,
)

from alitok.common.errors import BadInput
from alitok.config import load_yaml

ORDERS = [pair for first, second in combinations(IDEAS, 2) for pair in ((first, second), (second, first))]


def leaves(value: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, where if key == "init_args" else f"{where}.{key}")
        else:
            yield f"{where}.{key}", item


def rivals(first: Path, second: Path) -> bool:
    """Whether both ideas set one key, to different values: the later file then replaces the earlier, as files do."""
    one, two = (dict(leaves(load_yaml(idea))) for idea in (first, second))
    # a value in one file and a block in the other
    nested = any(a.startswith(f"{b}.") or b.startswith(f"{a}.") for a in one for b in two)
    return nested or any(one[key] != two[key] for key in one.keys() & two.keys())


def stack_of(first: Path, second: Path) -> tuple[Path, ...] | None:
    """The two ideas, and what goes between, over the first base of demo/ that they share, if no two are rivals."""
    for one in stacks(first):
        for two in stacks(second):
            if one[0] == two[0] and one[0].parent.name == "demo":
                base, *overlays = dict.fromkeys([*one, *two])
                return None if any(rivals(*pair) for pair in combinations(overlays, 2)) else (base, *overlays)
    return None


COMPOSED = [pair for pair in ORDERS if stack_of(*pair) is not None]
REFUSED = {
    ("perturbation", "wetok"): "this quantizer's tokens have sub-codes: leave the perturbation",
    ("perturbation", "residual"): "this quantizer's tokens have sub-codes: leave the perturbation",
    ("codebook-entropy", "residual"): "takes a codebook for each sub-code",
    ("fqgan", "perturbation"): "this quantizer's tokens have sub-codes: leave the perturbation",
    ("perturbation", "token-bridge"): "set delta to 2 or more",  # a hundredth of its levels
    ("fqgan", "post-training"): "Disentangling compares codebooks",
    **{
        tuple(sorted(("codebook-entropy", name))): "has none: take a"
        for name in ("bernoulli", "binary", "bsq", "fsq", "lfq", "token-bridge", "wetok")
    },
    **{
        tuple(sorted((name, other))): "a square grid of latents, not 24"
        for name in ("latent-repa", "token-flow", "vf")
        for other in ("titok", "nested-dropout", "tail-drop", "nestok", "flow-groups", "flow-first")  # latents only
    },
    **{
        tuple(sorted((name, "hieratok"))): "a square grid of latents, not 85"
        for name in ("latent-repa", "token-flow", "vf")
    },
    **{
        tuple(sorted((name, "windows"))): "WindowEncoder gives each of the 64 patches a latent"
        for name in ("titok", "nested-dropout", "tail-drop", "nestok", "flow-groups", "flow-first")  # latents only
    },
    # they have phases of their own, in which nothing is fitted
    **{
        ("digit", name): "not been fitted|needs steps and lr"
        for name in ("flow-decoder", "noise-decoder", "patch-flow")
    },
    ("digit", "post-training"): "not been fitted",
    ("masked", "rear"): "CodeVector reads a causal generator",
    **{
        ("cca", name): "ConditionContrast compares log probabilities"
        for name in ("masked", "masked-bits", "sub-code-head")
    },
    **{("distillation", name): "both generators need a head" for name in ("masked", "masked-bits", "sub-code-head")},
    **{("autoguidance", name): "heads of both must have logits" for name in ("masked-bits", "sub-code-head")},
}


EFFECTS: dict[str, Callable[[Pair, Path], bool]] = {
    "binary": quantizer("BinaryQuantizer", 4096),
    "fsq": quantizer("FiniteScalarQuantizer", 4375),
    "lfq": quantizer("LookupFreeQuantizer", 4096),
    "wetok": quantizer("LookupFreeQuantizer", 256),
    "nested-dropout": bottleneck("NestedDropout"),
    "tail-drop": bottleneck("TailDrop"),
    "perturbation": bottleneck("LatentPerturbation"),
    "titok": titok,
    "gram": term("gram"),
    "noise-decoder": noise_decoder,
    "flow-decoder": flow("FlowDecoder"),
    "patch-flow": flow("PatchFlow"),
    "flow-groups": token_schedule("Groups"),
    "flow-first": token_schedule("FirstTokens"),
    "splat": splat,
    "nestok": nestok,
    "stacked": stacked,
    "shift": shift,
    "holistic": holistic,
    "hieratok": hieratok,
    "digit": kmeans,
    "t2t": t2t,
    "windows": windows,
    "semantic": term("semantic"),
    "vf": term("vf", "encoder"),
    "latent-repa": term("repa", "encoder"),
    "codebook-entropy": term("entropy", "encoder"),
    "post-training": post_training,
    "fsq-generator": codes(4375),
    "lfq-generator": codes(4096),
    "wetok-generator": sub_codes,
    "latents-generator": shorter,
    "softcfg": softcfg,
    "rear": rear,
    "rar": random_order(weighted=False),
    "ort": random_order(weighted=True),
    "masked-bits": masked_bits,
    "gft": gft,
    "bsq": quantizer("SphereQuantizer", 4096),
    "bernoulli": quantizer("BernoulliQuantizer", 4096),
    "fqgan": several_codebooks,
    "ibq": quantizer("IndexBackpropagation", 1024),
    "ema": quantizer("AverageQuantizer", 1024),
    "simvq": quantizer("SimVQ", 1024),
    "residual": quantizer("ResidualQuantizer", 256),
    "token-flow": shared_index,
    "token-bridge": bins,
    "cca": reference_term("contrast"),
    "distillation": reference_term("teacher"),
    "masked": masked,
    "vpg": guidance("BadPrefix", 4),
    "autoguidance": guidance("WeakerGenerator", 2),
    "sub-code-head": sub_code_head,
}


def quick() -> set[tuple[Path, Path]]:
    """Pairs in which every idea occurs; the others, and the other orders, are for the slow tests."""
    seen: set[Path] = set()
    chosen = set()
    for pair in COMPOSED:
        if pair[0] < pair[1] and not seen.issuperset(pair):
            seen.update(pair)
            chosen.add(pair)
    return chosen


QUICK = quick()


def test_every_idea_is_known_and_some_pair_of_it_composes() -> None:
    assert {idea.stem for idea in IDEAS} == EFFECTS.keys()
    assert {idea.stem for pair in COMPOSED for idea in pair} == EFFECTS.keys()
    assert len(COMPOSED) > 40


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id=f"{pair[0].stem}-{pair[1].stem}", marks=[] if pair in QUICK else pytest.mark.slow)
        for pair in COMPOSED
    ],
)
def test_both_ideas_act_or_the_pair_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    files = stack_of(*pair)
    assert files is not None
    names = [idea.stem for idea in pair]
    refusal = REFUSED.get(tuple(sorted(names)))  # type: ignore[arg-type]
    with nullcontext() if refusal is None else pytest.raises(BadInput, match=refusal):
        both = Pair(files, tmp_path)
        assert {name: EFFECTS[name](both, tmp_path) for name in names} == dict.fromkeys(names, True)

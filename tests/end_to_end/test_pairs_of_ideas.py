"""Every two ideas of experiments/ideas/ that share a base, laid over it: both act, or a sentence refuses the pair."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from test_ideas import IDEAS, reduced, stacks
from tiny import module_of
from torch import Tensor

from alitok.artifacts.folder import load_generator, save_artifact
from alitok.common.build import import_class
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.config import load_yaml
from alitok.ideas.masked import MaskGIT
from alitok.ideas.post_training import PairedDataModule
from alitok.models.seams import Quantizer
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import guidance_of
from alitok.training.generator import outputs_of
from alitok.training.records import MicroBatch, StepRecord

ORDERS = [pair for first, second in combinations(IDEAS, 2) for pair in ((first, second), (second, first))]
IMAGES = 4


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
    ("masked", "rear"): "CodeVector reads a causal generator",
    **{
        ("cca", name): "ConditionContrast compares log probabilities"
        for name in ("masked", "masked-bits", "sub-code-head")
    },
    **{("distillation", name): "both generators need a head" for name in ("masked", "masked-bits", "sub-code-head")},
    **{("autoguidance", name): "heads of both must have logits" for name in ("masked-bits", "sub-code-head")},
}


class Pair:
    """The training module of a stack of files, at a small size, and what its parts make of some images."""

    def __init__(self, files: tuple[Path, ...], folder: Path) -> None:
        self.config = reduced(files, folder)
        self.module: Any = module_of(self.config)
        generator = torch.Generator().manual_seed(0)
        self.model = self.module.model
        self.paired = issubclass(import_class(self.config["data"]["class_path"]), PairedDataModule)
        if hasattr(self.module, "tokenizer"):
            self.images = torch.rand(IMAGES, 3, self.model.image_size, self.model.image_size, generator=generator)
            shape = (IMAGES, self.model.num_tokens, *([self.model.sub_codes] if self.model.sub_codes > 1 else []))
            self.ids = torch.randint(self.model.codebook_size, shape, generator=generator)
            for parameter in self.model.decoder.parameters():  # what begins at zero would hide the tokens
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2, generator=generator)

    @torch.no_grad()
    def image(self, paired: bool | None = None) -> Tensor:
        """What the decoder makes in training, of given tokens in post-training."""
        ids = self.ids if (self.paired if paired is None else paired) else None
        step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
        return self.model.train()(self.images, ids=ids, step=step)["image"]


def changes(pair: Pair, without: AbstractContextManager[Any]) -> bool:
    with without:
        plain = pair.image()
    return not torch.equal(plain, pair.image())


@contextmanager
def no_bottleneck(tokenizer: Any) -> Iterator[None]:
    bottleneck, tokenizer.bottleneck = tokenizer.bottleneck, None
    yield
    tokenizer.bottleneck = bottleneck


def bottleneck(name: str) -> Callable[[Pair, Path], bool]:
    def acts(pair: Pair, folder: Path) -> bool:
        kind = type(pair.model.bottleneck).__name__
        return kind == name and changes(pair, no_bottleneck(pair.model))

    return acts


def quantizer(name: str, codes: int) -> Callable[[Pair, Path], bool]:
    def acts(pair: Pair, folder: Path) -> bool:
        model = pair.model
        plain = patch.object(
            model.quantizer, "lookup", lambda ids: torch.zeros(*ids.shape[:2], 1).expand(-1, -1, width)
        )
        width = model.quantizer(model.encode_latents(pair.images)).latents.shape[-1]
        if not pair.paired:  # the latents, unquantized
            plain = patch.object(
                model,
                "forward",
                lambda images, ids, step: type(model).forward(model, images, quantize=False, step=step),
            )
        return type(model.quantizer).__name__ == name and model.codebook_size == codes and changes(pair, plain)

    return acts


def titok(pair: Pair, folder: Path) -> bool:
    return type(pair.model.decoder).__name__ == "TiTokDecoder" and pair.model.num_tokens == 32


def post_training(pair: Pair, folder: Path) -> bool:
    given = pair.paired and not torch.equal(pair.image(), pair.image(paired=False))
    return given and pair.module.trainable_of == {"post": ["decoder"]}


def codes(count: int) -> Callable[[Pair, Path], bool]:
    return lambda pair, folder: pair.model.codebook_size == count


def sub_codes(pair: Pair, folder: Path) -> bool:
    return pair.model.id_shape[1:] == (4,) and pair.model.codebook_size == 256


def shorter(pair: Pair, folder: Path) -> bool:
    return pair.model.num_tokens == 32 and pair.config["data"]["init_args"]["keep"] == 32


def softcfg(pair: Pair, folder: Path) -> bool:
    """The artifact's card recommends it, and what is drawn by the card differs from what is drawn without it."""
    for parameter in pair.model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    card = {"kind": "generator", **pair.module.recommended}
    save_artifact(folder / "artifact", pair.model.block, pair.model, card)
    generator, labels = load_generator(folder / "artifact"), torch.arange(10)
    # a large scale and many images: a head of bits is nearly certain with such weights, so few draws change
    drawn = [generate(generator, labels, 64.0, 1.0, schedule=name) for name in (None, "power-cosine")]
    return generator.card["schedule"] == "softcfg" and not torch.equal(*drawn)


def term(name: str, part: str = "decoder") -> Callable[[Pair, Path], bool]:
    """The loss term has a value for what the model makes in training, and moves that part of it."""

    def acts(pair: Pair, folder: Path) -> bool:
        kind = pair.module.terms[name]
        kind.setup("cpu")
        step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
        batch = MicroBatch({"image": pair.images}, 1.0, step, True)
        if pair.paired:
            batch.batch["tokens"] = pair.ids
        pair.model.zero_grad()
        outputs = pair.module.train()._outputs(batch, pair.module.schedule.at(0), StepRecord(0, False))
        for _, one in outputs.get("decodings") or [(1.0, outputs)]:
            kind(batch.batch, one, step).backward(retain_graph=True)
        moved = pair.model.get_submodule(part).parameters()
        return any(bool(p.grad.any()) for p in moved if p.grad is not None)

    return acts


class Codes(Quantizer):
    """Vectors of 16 channels for the codes of any quantizer."""

    def lookup(self, ids: Tensor) -> Tensor:
        vectors = torch.sin(ids[..., None] * torch.arange(1, 17.0))
        return vectors if ids.ndim == 2 else vectors.mean(-2)


def random_ids(pair: Pair) -> Tensor:
    shape = (IMAGES, *pair.model.id_shape)
    return torch.randint(pair.model.codebook_size, shape, generator=torch.Generator().manual_seed(0))


def rear(pair: Pair, folder: Path) -> bool:
    """The context is noisy, and both networks learn from the vectors of the codes."""
    ids, step = random_ids(pair), Step(0, 0, 10, IMAGES, range(IMAGES))
    noisy = pair.module.corruptions[0](ids, pair.model.codebook_size, step)
    terms = [pair.module.terms[name] for name in ("current", "next")]
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    with pair.module.terms.tapped() as seen:
        outputs = pair.model.losses(ids, labels, noisy, None, step)
    for term in terms:
        term.use_codebook(Codes())
    outputs = seen.join(dict(outputs))
    sum(term({"tokens": ids}, outputs, step) for term in terms).backward()
    return not torch.equal(ids, noisy) and all(p.grad.any() for term in terms for p in term.head.parameters())


def random_order(weighted: bool) -> Callable[[Pair, Path], bool]:
    @torch.no_grad()
    def acts(pair: Pair, folder: Path) -> bool:
        ids, model = random_ids(pair), pair.model
        found = pair.module.order(model.num_tokens, model.num_prefix, Step(0, 0, 10, IMAGES, range(IMAGES)))
        hidden = []
        for _ in range(2):  # with and without the vectors of the places that follow
            hidden.append(model.losses(ids, torch.zeros(IMAGES, dtype=torch.int64), order=found.places)["hidden"])
            model.next_places.zero_()
        raster = (found.places == torch.arange(model.num_tokens)).all()
        return not raster and not torch.equal(*hidden) and (found.weights is not None) == weighted

    return acts


def noise_decoder(pair: Pair, folder: Path) -> bool:
    """Once the noise has weights, another seed makes another image of the same latents."""
    decoder = pair.model.decoder
    torch.nn.init.normal_(decoder.embed.noise_weight)
    latents = torch.zeros(1, *pair.model.quantizer.lookup(pair.ids).shape[1:])
    with torch.no_grad():
        return not torch.equal(decoder.decode(latents, 0), decoder.decode(latents, 1))


def flow(name: str) -> Callable[[Pair, Path], bool]:
    """The velocity moves the decoder, and another seed makes another image of the same latents."""

    def acts(pair: Pair, folder: Path) -> bool:
        decoder = pair.model.decoder
        latents = torch.zeros(1, *pair.model.quantizer.lookup(pair.ids).shape[1:])
        with torch.no_grad():
            drawn = [decoder.decode(latents, seed) for seed in (0, 1)]
        return type(decoder).__name__ == name and not torch.equal(*drawn) and term("flow")(pair, folder)

    return acts


def token_schedule(name: str) -> Callable[[Pair, Path], bool]:
    """Some tokens are not there at every time, and the flow moves the decoder."""

    def acts(pair: Pair, folder: Path) -> bool:
        schedule = pair.model.decoder.tokens
        seen = schedule.visible(torch.tensor([0.05, 0.95]), pair.model.num_tokens)
        return type(schedule).__name__ == name and not seen[0].all() and flow("FlowDecoder")(pair, folder)

    return acts


def splat(pair: Pair, folder: Path) -> bool:
    """Gaussians that move change the image."""
    head = pair.model.decoder.image_head
    return type(head).__name__ == "SplatHead" and changes(pair, patch.object(head, "shape", None))


def nestok(pair: Pair, folder: Path) -> bool:
    """There are two decodings, of which the second is aligned with the first and moves the decoder."""
    step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
    part = MicroBatch({"image": pair.images}, 1.0, step, True)
    if pair.paired:
        part.batch["tokens"] = pair.ids
    (_, whole), (_, prefix) = pair.module.train()._outputs(part, pair.module.schedule.at(0), StepRecord(0, False))[
        "decodings"
    ]
    pair.module.terms["align"](part.batch, {**prefix, "first": whole}, step).backward()
    moved = any(bool(p.grad.any()) for p in pair.model.decoder.parameters() if p.grad is not None)
    return moved and not torch.equal(whole["image"], prefix["image"])


def stacked(pair: Pair, folder: Path) -> bool:
    return [block.attention.causal for block in pair.model.decoder.blocks] == [True, False] and term("causal")(
        pair, folder
    )


def shift(pair: Pair, folder: Path) -> bool:
    return pair.model.decoder.shift == 1 and changes(pair, patch.object(pair.model.decoder, "shift", 0))


def holistic(pair: Pair, folder: Path) -> bool:
    return pair.model.num_tokens == 16 + 64 and pair.model.decoder.prefix_head is None


def hieratok(pair: Pair, folder: Path) -> bool:
    """Both halves have the scales of 8 x 8 patches; the decoder's buffer token is in the first."""
    kinds = [type(part).__name__ for part in (pair.model.encoder, pair.model.decoder)]
    ends = [block.attention.ends for block in (pair.model.encoder.blocks[-1], pair.model.decoder.blocks[0])]
    return kinds == ["HieraEncoder", "HieraDecoder"] and ends == [[1, 5, 21, 85], [2, 6, 22, 86]]


def masked_bits(pair: Pair, folder: Path) -> bool:
    return type(pair.model.output).__name__ == "MaskedBitHead" and pair.model.output.rounds == [2, 2, 3, 5]


def gft(pair: Pair, folder: Path) -> bool:
    """The loss is another one in training, and an image takes one row."""
    model = pair.model.train()
    for layer in (model.output, model.temperature[2]):
        torch.nn.init.normal_(layer.weight, std=0.5)
    ids, labels, step = random_ids(pair), torch.zeros(IMAGES, dtype=torch.int64), Step(0, 0, 10, IMAGES, range(IMAGES))
    with torch.no_grad():
        mixed, plain = (model.losses(ids, labels, step=one)["nats"] for one in (step, None))
    rule = guidance_of(Draw(2.0, schedule=pair.module.recommended["schedule"]))
    return not torch.equal(mixed, plain) and len(rule.branches(model, labels, 0, range(IMAGES))) == 1


def several_codebooks(pair: Pair, folder: Path) -> bool:
    """Two ids a token, and the term that keeps them apart moves the adapters."""
    term = pair.module.terms["apart"]
    pair.model.zero_grad()
    step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
    outputs = pair.model.train()(pair.images, ids=pair.ids if pair.paired else None, step=step)
    for _, one in outputs.get("decodings") or [(1.0, outputs)]:
        value = term({"image": pair.images}, one)
        if value.requires_grad:
            value.backward(retain_graph=True)
    learns = any(bool(p.grad.any()) for p in pair.model.quantizer.adapters.parameters() if p.grad is not None)
    # where the quantizer is frozen there is nothing to move
    return (learns or not any(p.requires_grad for p in pair.model.quantizer.parameters())) and pair.model.sub_codes == 2


def shared_index(pair: Pair, folder: Path) -> bool:
    """One id a token; the semantic half moves the encoder."""
    return quantizer("SharedIndexQuantizer", 1024)(pair, folder) and term("semantic_half", "encoder")(pair, folder)


def bins(pair: Pair, folder: Path) -> bool:
    """Fitted, the levels are those of the latents."""
    quantizer = pair.model.quantizer
    before = quantizer.mean.clone()
    with torch.no_grad():
        quantizer.fit(iter([pair.model.encode_latents(pair.images)]))
    fitted = pair.module.schedule.phases["bins"].fit == 32
    return fitted and not torch.equal(before, quantizer.mean) and pair.model.sub_codes == 8


def reference_term(name: str) -> Callable[[Pair, Path], bool]:
    """The term compares with another generator, moves the generator, and is all of the loss; or it says why not."""

    def acts(pair: Pair, folder: Path) -> bool:
        model, term, ids = pair.model, pair.module.terms[name], random_ids(pair)
        torch.nn.init.normal_(next(p for n, p in model.output.named_parameters() if n.endswith("weight")), std=0.5)
        labels, step = torch.zeros(IMAGES, dtype=torch.int64), Step(0, 0, 10, IMAGES, range(IMAGES))
        read = {"ids": ids, "inputs": ids, "order": None, "step": step}
        other = copy.deepcopy(model).eval()
        torch.nn.init.normal_(other.embeddings.weight, std=0.5)
        with torch.no_grad():
            reference = outputs_of(other, read, False, labels)
        model.zero_grad()
        term({"label": labels}, {**outputs_of(model, read, False, labels), "reference": reference}, step).backward()
        moved = any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
        return moved and pair.module.schedule.at(0).phase.weights["nats"] == 0

    return acts


def masked(pair: Pair, folder: Path) -> bool:
    """It is drawn by the sampler of the configuration."""
    draw = Draw.chosen(pair.module.recommended)
    sampler = Sampler(pair.model.eval(), draw)
    ids = sampler.sample(torch.arange(2))
    return sampler.reveal == MaskGIT(16, 4.5, 2) and ids.shape == (2, *pair.model.id_shape)


def guidance(name: str, branches: int) -> Callable[[Pair, Path], bool]:
    """The card's rule has its branches, and what it draws is something else."""

    def acts(pair: Pair, folder: Path) -> bool:
        for parameter in pair.model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        draw = Draw.chosen({**pair.module.recommended, "guidance": 3.0})
        if name == "WeakerGenerator":
            draw.schedule["init_args"]["checkpoint"] = str(folder / "weak")  # type: ignore[index]
            save_artifact(folder / "weak", pair.model.block, module_of(pair.config).model, {"kind": "generator"})
        labels, rule = torch.arange(10), guidance_of(draw)
        model = pair.model.eval()
        count = len(rule.branches(model, labels, 0, range(10)))
        plain = generate(model, labels, 64.0, 1.0, schedule="power-cosine")
        mine = generate(model, labels, replace(rule, scale=64.0))  # type: ignore[type-var]
        return type(rule).__name__ == name and count == branches and not torch.equal(mine, plain)

    return acts


def sub_code_head(pair: Pair, folder: Path) -> bool:
    return type(pair.model.output).__name__ == "SubCodeHead" and sub_codes(pair, folder)


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

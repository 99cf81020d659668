"""Whether an idea for generators acts, over a base and another idea."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tiny import module_of
from tokenizer_effects import (
    IMAGES,
    Codes,
    Pair,
    sub_codes,
)
from torch import Tensor

from alitok.artifacts.folder import load_generator, save_artifact
from alitok.common.draw import Draw
from alitok.common.random import Step
from alitok.ideas.masked import MaskGIT
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import guidance_of
from alitok.training.generator import outputs_of


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
    learned = [parameter for term in terms for parameter in term.head.parameters()]
    learned.append(pair.model.embeddings.weight)  # the terms reach the generator, not only their heads
    return not torch.equal(ids, noisy) and all(p.grad is not None and p.grad.any() for p in learned)


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

"""reAR: the noise in the context, and the networks that regress code vectors."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny, token_cache, train
from torch import Tensor
from torch.testing import assert_close

from alitok.artifacts.folder import save_artifact
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.fsq import FiniteScalarQuantizer
from alitok.ideas.lookup_free import LookupFreeQuantizer
from alitok.ideas.rear import CodeVector, NoisyContext
from alitok.models.generator import Generator
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.seams import Quantizer
from alitok.training.generator import GeneratorTraining
from alitok.training.records import tapped

IMAGES, TOKENS, CODES = 12, 400, 64


def at(number: int, images: range = range(IMAGES), seed: int = 0) -> Step:
    return Step(seed, number, 100, IMAGES, images)


def noisy(step: Step, *sub_codes: int) -> Tensor:
    """Where tokens of 0 are replaced: the ids, of 1..CODES instead of 0..CODES - 1."""
    clean = torch.full((len(step.places), TOKENS, *sub_codes), -1)
    found = NoisyContext()(clean, CODES, step)
    assert (clean == -1).all()
    return found


def test_the_largest_share_falls_to_zero_at_three_quarters() -> None:
    largest = [NoisyContext().largest(progress) for progress in (0.0, 0.3, 0.6, 0.75, 1.0)]
    assert largest == pytest.approx([max(0.0, 1 - 4 * t / 3) for t in (0.0, 0.3, 0.6, 0.75, 1.0)])
    assert NoisyContext(0.5, 1.0).largest(0.5) == pytest.approx(0.25)


@pytest.mark.parametrize("sub_codes", [(), (3,)])
def test_each_image_has_its_own_share_of_uniform_codes(sub_codes: tuple[int, ...]) -> None:
    shares, codes = [], []
    for number in range(8):
        found = noisy(at(number), *sub_codes)
        replaced = found >= 0
        assert found.shape == (IMAGES, TOKENS, *sub_codes)
        if sub_codes:  # a token is replaced as a whole, by sub-codes that are drawn apart
            assert torch.equal(replaced.all(-1), replaced.any(-1))
            assert (found[..., 0] != found[..., 1]).any()
        codes.append(found[replaced])
        shares.append(replaced.flatten(1).float().mean(1) / NoisyContext().largest(at(number).progress))
    share = torch.cat(shares)  # uniform in 0..1, but for the noise of 400 tokens
    assert share.mean() == pytest.approx(0.5, abs=0.1)
    assert share.min() < 0.1 < 0.9 < share.max()
    counts = torch.cat(codes).bincount(minlength=CODES)
    assert len(counts) == CODES
    assert (counts.float() / counts.float().mean() - 1).abs().max() < 0.35


def test_the_noise_is_a_function_of_seed_step_and_place() -> None:
    state = torch.get_rng_state()
    whole = noisy(at(3))
    parts = torch.cat([noisy(at(3, range(5))), noisy(at(3, range(5, IMAGES)))])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(whole, parts)
    assert not any(torch.equal(whole, other) for other in (noisy(at(4)), noisy(at(3, seed=1))))
    assert len({tuple(row) for row in whole.tolist()}) == IMAGES


@pytest.mark.parametrize("number", [75, 99])
def test_the_last_quarter_is_clean(number: int) -> None:
    assert (noisy(at(number)) == -1).all()


QUANTIZERS: dict[str, tuple[Quantizer, int]] = {
    "clustered": (ClusteredQuantizer(24, 8), 8),
    "fsq": (FiniteScalarQuantizer([6, 4]), 2),
    "sub-codes": (LookupFreeQuantizer(8, 3), 9),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: Any) -> Quantizer:
    return QUANTIZERS[request.param][0].requires_grad_(False)


def generator_of(quantizer: Quantizer, block: Any, golden: Any) -> Generator:
    made = block(codebook_size=quantizer.codebook_size, depth=4, dropout=0.0)
    if quantizer.sub_codes > 1:
        made["class_path"] = "alitok.ideas.shared.sub_codes.SubCodeGenerator"
        made["init_args"]["sub_codes"] = quantizer.sub_codes
    generator: Generator = golden.randomize(build(made))
    return generator


def term_of(token: Any, depth: float, generator: Generator, quantizer: Quantizer) -> CodeVector:
    channels = next(count for known, count in QUANTIZERS.values() if known is quantizer)
    term = CodeVector(token, depth, channels, hidden=16)
    term.attach(generator)
    term.use_codebook(quantizer)
    return term


@pytest.mark.parametrize(("token", "depth", "path"), [("current", 0.0, "dropout"), ("next", 0.75, "blocks.2")])
def test_the_cosine_by_hand_and_where_its_gradient_goes(
    token: str, depth: float, path: str, quantizer: Quantizer, golden: Any, small_generator_block: Any
) -> None:
    generator = generator_of(quantizer, small_generator_block, golden)
    term = term_of(token, depth, generator, quantizer)
    assert term.taps == [path]
    draw = torch.Generator().manual_seed(0)
    ids, inputs = torch.randint(quantizer.codebook_size, (2, 3, *generator.id_shape), generator=draw)
    labels = torch.tensor([0, 1, 2])
    with tapped(generator, term.taps) as seen:
        outputs = seen.join(dict(generator.losses(ids, labels, inputs)))
    value = term({"tokens": ids, "label": labels}, outputs)
    # the states again, block by block: the label's at 0, that of input token i at i + 1
    x = torch.cat([generator.embed_labels(labels), generator.embed_tokens(inputs[:, :-1])], dim=1)
    for block in generator.blocks[: 3 if depth else 0]:
        x = block(x, generator.rope[: x.shape[1]])
    head: Any = term.head
    vectors, total = F.normalize(quantizer.lookup(ids), dim=-1), []
    for i in range(generator.num_tokens):
        if token == "next" or i > 0:
            guess = head[2](F.gelu(head[0](x[:, i])))
            total.append(1 - (F.normalize(guess, dim=-1) * vectors[:, i if token == "next" else i - 1]).sum(-1))
    assert_close(value, torch.stack(total).mean())
    value.backward()
    assert all(bool(parameter.grad.any()) for parameter in head.parameters())
    assert bool(generator.embeddings.weight.grad.any())
    moved = [any(p.grad is not None for p in block.parameters()) for block in generator.blocks]
    assert moved == ([True, True, True, False] if depth else [False] * 4)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_the_length_of_the_vectors_does_not_matter(golden: Any, small_generator_block: Any) -> None:
    quantizer = QUANTIZERS["clustered"][0]
    generator = generator_of(quantizer, small_generator_block, golden)
    term = term_of("next", 1.0, generator, quantizer)
    ids, labels = torch.arange(21)[None], torch.tensor([0])
    outputs = {"targets": ids, term.taps[0]: torch.randn(1, 21, 32)}
    before = term({"tokens": ids}, outputs)
    quantizer.codebook.weight.data *= torch.rand(24, 1) + 1
    assert_close(term({"tokens": ids, "label": labels}, outputs), before)


@pytest.mark.parametrize(
    ("depth", "blocks", "path"),
    [
        (0.0, 24, "dropout"),
        (0.75, 24, "blocks.17"),
        (0.75, 20, "blocks.14"),
        (0.75, 6, "blocks.3"),
        (0.1, 1, "blocks.0"),
    ],
)
def test_the_depth_is_rounded_down_to_blocks(depth: float, blocks: int, path: str, small_generator_block: Any) -> None:
    with torch.device("meta"):
        generator = build(small_generator_block(depth=blocks))
        term = CodeVector("next", depth, 8)
        term.attach(generator)
    assert term.taps == [path]
    assert generator.get_submodule(path) is not None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoisyContext(1.5), "start in 0..1"),
        (lambda: NoisyContext(1.0, 0.0), "end above 0"),
        (lambda: CodeVector("previous", 0.0, 8), "current or next, not 'previous'"),  # type: ignore[arg-type]
        (lambda: CodeVector("next", 18, 8), r"a share of the blocks in 0..1, not 18"),
        (lambda: CodeVector("next", 0.5, 8).attach(torch.nn.Linear(1, 1)), "generator's training, not of Linear's"),
        (lambda: CodeVector("next", 0.5, 8).use_codebook(LookupFreeQuantizer(8, 3)), "set code_dim to 9"),
    ],
)
def test_refusals(make: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        make()


def test_micro_batches_equal_one_batch_and_the_networks_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = tiny("tokenizer-stage1", tmp_path)["model"]["init_args"]["tokenizer"]
    card = save_artifact(tmp_path / "stage2" / "artifact", block, build(block), {"kind": "tokenizer"})
    token_cache(tmp_path, digest=card["digest"])
    kept: list[dict[str, Tensor]] = []

    def keep(module: GeneratorTraining, optimizer: Any) -> None:
        kept.append({name: parameter.grad.clone() for name, parameter in module.named_parameters()})

    monkeypatch.setattr(GeneratorTraining, "on_before_optimizer_step", keep)
    for cut in ([], ["--data.micro_batch", "3"]):
        words = ["--model.generator.dropout", "0.0", *cut]
        config = tiny("generator", tmp_path, *words)
        vector = {"class_path": "alitok.ideas.rear.CodeVector"}
        config["model"]["init_args"] |= {
            "tokenizer": str(tmp_path / "stage2" / "artifact"),
            "corruptions": {"noise": {"class_path": "alitok.ideas.rear.NoisyContext"}},
            "losses": {
                "current": {**vector, "init_args": {"token": "current", "depth": 0.0, "code_dim": 4, "hidden": 16}},
                "next": {**vector, "init_args": {"token": "next", "depth": 0.75, "code_dim": 4, "hidden": 16}},
            },
        }
        train(config, 1)
    assert sum(name.startswith("heads.") for name in kept[0]) == 8
    for name, gradient in kept[0].items():
        assert_close(gradient, kept[1][name], atol=1e-6, rtol=1e-4)
        assert not name.startswith("heads.") or bool(gradient.any())

"""Where two ideas meet: prefixes with sub-codes, with pairs, with post-training, with guidance by name."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import load_generator, load_tokenizer, save_artifact
from alitok.callbacks import pictures
from alitok.callbacks.pictures import SampleGrid
from alitok.cli import main
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.data import shapes
from alitok.data.token_cache import TokenCache
from alitok.ideas.lookup_free import LookupFreeQuantizer
from alitok.losses.adversarial import BlurDiscriminator
from alitok.networks.classifier import Classifier
from alitok.sampling.generate import generate
from alitok.training.tokenizer import TokenizerTraining

CLASSES = ("circle", "square", "star")
NESTED = {"class_path": "alitok.ideas.nested_dropout.NestedDropout", "init_args": {"code_dim": 8}}
PERTURBED = {"class_path": "alitok.ideas.perturbation.LatentPerturbation", "init_args": {"delta": 4}}
GROUPED = {
    "class_path": "alitok.ideas.lookup_free.LookupFreeQuantizer",
    "init_args": {"codebook_size": 16, "sub_codes": 2},
}

Make = Callable[..., Path]


@pytest.fixture
def tokenizer_of(golden: Any, small_tokenizer_block: Any, tmp_path: Path) -> Make:
    """Writes a tokenizer artifact with other parts, and says where."""

    def make(extra: Any = None, **parts: Any) -> Path:
        block = small_tokenizer_block(2)
        block["init_args"] |= parts
        save_artifact(tmp_path / "tokenizer", block, golden.randomize(build(block)), {"kind": "tokenizer"}, extra)
        return tmp_path / "tokenizer"

    return make


@pytest.fixture
def generator_of(golden: Any, small_generator_block: Any, tmp_path: Path) -> Make:
    """Writes a generator artifact for that tokenizer's tokens, and says where."""

    def make(tokenizer: Path, sub_codes: int | None = None, **arguments: Any) -> Path:
        block = small_generator_block(**arguments)
        if sub_codes is not None:
            block["class_path"] = "alitok.ideas.shared.sub_codes.SubCodeGenerator"
            block["init_args"]["sub_codes"] = sub_codes
        digest = json.loads((tokenizer / "card.json").read_text())["digest"]
        card = {"kind": "generator", "tokenizer": digest, "class_names": list(CLASSES), "guidance": 3.0}
        save_artifact(tmp_path / "generator", block, golden.randomize(build(block)), card)
        return tmp_path / "generator"

    return make


def take_classes(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {name: shapes.SHAPES[name] for name in names})


def pairs(generator: Path, tokenizer: Path, out: Path) -> TokenCache:
    words = ["pairs", "--generator", generator, "--tokenizer", tokenizer, "--data", "shapes", "--count", 5]
    main([str(word) for word in (*words, "--sigma", 0.5, "--out", out)])
    return TokenCache(out)


def test_pairs_of_a_generator_of_a_prefix_are_prefixes(
    tokenizer_of: Make, generator_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_classes(monkeypatch, CLASSES)
    tokenizer = tokenizer_of(bottleneck=NESTED)
    cache = pairs(generator_of(tokenizer, num_prefix=6, grid=[0, 0]), tokenizer, tmp_path / "pairs")
    assert (cache.views, cache.num_tokens) == (2, 6)
    ids = cache.gather(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    assert load_tokenizer(tokenizer).decode(ids).shape == (5, 3, 32, 32)


def test_pairs_of_sub_codes(
    tokenizer_of: Make, generator_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_classes(monkeypatch, CLASSES)
    tokenizer = tokenizer_of(quantizer=GROUPED)
    generator = generator_of(tokenizer, codebook_size=16, sub_codes=2)
    cache = pairs(generator, tokenizer, tmp_path / "pairs")
    assert (cache.views, cache.num_tokens, cache.sub_codes) == (2, 21, 2)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((*CLASSES, "triangle"), "has 4 classes, the generator 3"),
        (("circle", "triangle", "square"), "has 'triangle' as class 1, the generator 'square'"),
    ],
)
def test_pairs_of_other_classes_are_refused(
    names: tuple[str, ...],
    words: str,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    take_classes(monkeypatch, names)
    with pytest.raises(SystemExit):
        pairs(artifacts / "generator", artifacts / "tokenizer", tmp_path / "pairs")
    assert words in capsys.readouterr().err


def test_a_prefix_is_the_same_under_soft_guidance_and_shorter_ones(golden: Any, small_generator_block: Any) -> None:
    generator = golden.randomize(build(small_generator_block()))
    labels = torch.tensor([0, 2, 1])
    whole = generate(generator, labels, 4.0, 0.8, seed=3, schedule="softcfg")
    for keep in (1, 5, 20):
        assert torch.equal(
            generate(generator, labels, 4.0, 0.8, seed=3, schedule="softcfg", keep=keep), whole[:, :keep]
        )


def test_prefixes_of_sub_codes_decode(tokenizer_of: Make, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(bottleneck=NESTED, quantizer=GROUPED)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["reconstruct", "--tokenizer", tokenizer, tmp_path / "a.png", "--keep", "powers", "--out", tmp_path / "out"]
    main([str(word) for word in words])
    assert list(json.loads((tmp_path / "out" / "tokens.json").read_text())["psnr"]) == ["1", "2", "4", "8", "16", "21"]


def test_the_record_tells_how_many_tokens_were_kept(tokenizer_of: Make, generator_of: Make, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(bottleneck=NESTED)
    words = ["sample", "--generator", generator_of(tokenizer), "--tokenizer", tokenizer, "--count", 6, "--keep", 4]
    main([str(word) for word in (*words, "--out", tmp_path / "four.npz")])
    Classifier(num_classes=4, width=2).save(tmp_path / "classifier")
    words = ["evaluate", tmp_path / "four.npz", "--reference", tmp_path / "four.npz"]
    main([str(word) for word in (*words, "--extractor", tmp_path / "classifier", "--json", tmp_path / "fid.json")])
    assert json.loads((tmp_path / "fid.json").read_text())["keep"] == 4


def test_what_cannot_be_perturbed_is_refused_before_anything_is_trained(
    small_tokenizer_block: Any, tokenizer_of: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = small_tokenizer_block(2)
    with pytest.raises(BadInput, match="sub-codes: leave the perturbation"):
        build({**block, "init_args": {**block["init_args"], "quantizer": GROUPED, "bottleneck": PERTURBED}})
    many = {**PERTURBED, "init_args": {"delta": 25}}
    with pytest.raises(BadInput, match="its 25 nearest codes: the codebook has 24"):
        build({**block, "init_args": {**block["init_args"], "bottleneck": many}})
    Classifier(num_classes=4, width=2).save(tmp_path / "classifier")
    words = ["evaluate", "--reconstruction", "--pfid", "--tokenizer", tokenizer_of(quantizer=GROUPED)]
    words += ["--data", "shapes", "--reference", "nowhere.npz", "--extractor", tmp_path / "classifier"]
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    assert "leave the perturbation (or --pfid) out" in capsys.readouterr().err


def test_post_training_keeps_a_tokenizer_of_any_length(small_tokenizer_block: Any, golden: Any) -> None:
    block = small_tokenizer_block(2)
    block["init_args"]["bottleneck"] = NESTED
    tokenizer = golden.randomize(build(block)).train()
    images, ids = torch.rand(6, 3, 32, 32), torch.randint(24, (6, 21))
    step = Step(0, 1, 2, 6, range(6))
    cut = tokenizer(images, ids=ids, step=step)["image"]
    whole = tokenizer.eval()(images, ids=ids)["image"]
    same = [torch.equal(*pair) for pair in zip(cut, whole, strict=True)]
    kept = [tokenizer.bottleneck.kept(step, place, 21) for place in range(6)]
    assert same == [count == 21 for count in kept]
    assert not all(same)


def training(start: Path, block: dict[str, Any], discriminator: str | None = None) -> TokenizerTraining:
    """A second stage from `start`, as far as its weights."""
    phase = {"steps": 1, "lr": 1e-3, "adversarial": discriminator is not None}
    module = TokenizerTraining(
        block,
        {"mse": {"class_path": "alitok.losses.terms.MSE"}},
        {"main": phase},
        start_from=str(start),
        trainable=["decoder"],
        discriminator=None if discriminator is None else {"class_path": discriminator},
        adversarial=None if discriminator is None else {"class_path": "alitok.losses.adversarial.MagvitGAN"},
    )
    module._start_from(str(start))
    return module


def test_a_bottleneck_may_join_in_the_second_stage(tokenizer_of: Make, small_tokenizer_block: Any) -> None:
    start = tokenizer_of()
    block = small_tokenizer_block(2)
    block["init_args"]["bottleneck"] = NESTED
    module = training(start, block)
    assert module.fresh == ["bottleneck.mask_token"]
    block["init_args"]["quantizer"] = GROUPED
    with pytest.raises(BadInput, match=r"quantizer.* does not fit this configuration's encoder and quantizer"):
        training(start, block)


def test_fsq_of_other_levels_is_refused_in_the_second_stage(tokenizer_of: Make, small_tokenizer_block: Any) -> None:
    """Their tensors have one shape, and the ids of the one are no codes of the other."""
    block = small_tokenizer_block(2)
    blocks = [
        {"class_path": "alitok.ideas.fsq.FiniteScalarQuantizer", "init_args": {"levels": [count] * 8}}
        for count in (4, 2)
    ]
    block["init_args"]["quantizer"] = blocks[1]
    with pytest.raises(BadInput, match="its quantizer has 65536 codes, this configuration's 256; give the quantizer"):
        training(tokenizer_of(quantizer=blocks[0]), block)


def test_another_discriminator_is_refused(tokenizer_of: Make, small_tokenizer_block: Any) -> None:
    kind = "alitok.losses.adversarial.BlurDiscriminator"
    start = tokenizer_of({"discriminator": ({"class_path": kind}, BlurDiscriminator())})
    training(start, small_tokenizer_block(2), kind)
    with pytest.raises(BadInput, match=r"its discriminator is a BlurDiscriminator .* PatchGAN"):
        training(start, small_tokenizer_block(2), "alitok.losses.adversarial.PatchGAN")


def test_samples_of_a_run_follow_the_schedule_and_need_a_tokenizer_that_decodes_them(
    tokenizer_of: Make, generator_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load_generator(generator_of(tokenizer_of(), num_prefix=6, grid=[0, 0]))
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(token_cache=None, class_names=list(CLASSES)))
    module: Any = SimpleNamespace(generator=generator, device=torch.device("cpu"), recommended={})
    with pytest.raises(BadInput, match="decodes all 21 tokens, not the first 6"):
        SampleGrid(str(tmp_path / "tokenizer")).setup(trainer, module, "fit")
    grid = SampleGrid(str(tokenizer_of(bottleneck=NESTED)), guidance=3.0, schedule="softcfg")
    grid.setup(trainer, module, "fit")
    drawn: list[Any] = []

    def spy(*arguments: Any) -> list[Any]:
        drawn.append(arguments[-1])
        assert arguments[2] == [index % len(CLASSES) for index in range(4 * len(CLASSES))]  # a column is a class
        return [((0,), None, torch.zeros(1, 3, 32, 32))]

    monkeypatch.setattr(pictures, "sample_images", spy)
    monkeypatch.setattr(pictures, "evaluated", lambda *_: generator)
    trainer.is_global_zero, trainer.default_root_dir, trainer.global_step, trainer.loggers = True, tmp_path, 0, []
    grid.on_validation_epoch_end(trainer, module)
    assert drawn == [Draw(3.0, schedule="softcfg")]


def test_ids_alone_cost_no_entropy(monkeypatch: pytest.MonkeyPatch, tokenizer_of: Make, tmp_path: Path) -> None:
    artifact = tokenizer_of(quantizer=GROUPED)
    tokenizer = load_tokenizer(artifact)
    images = torch.rand(2, 3, 32, 32)
    expected = tokenizer.quantizer(tokenizer.encode_latents(images)).ids
    monkeypatch.delattr(LookupFreeQuantizer, "_entropy")
    assert torch.equal(tokenizer.encode(images), expected)
    Classifier(num_classes=4, width=2).save(tmp_path / "classifier")
    words = ["--tokenizer", artifact, "--data", "shapes", "--count", 4]
    main([str(word) for word in ("tokenize", *words, "--out", tmp_path / "tokens")])
    rfid = ["evaluate", "--reconstruction", *words, "--extractor", tmp_path / "classifier"]
    main([str(word) for word in (*rfid, "--json", tmp_path / "rfid.json")])

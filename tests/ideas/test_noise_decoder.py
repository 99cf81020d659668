"""WeTok's noise-in decoder: where it begins, what its noise depends on, and its steps on two processes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import DEMO, module_of, tiny, train
from torch import Tensor

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.cli import main
from alitok.common.build import build
from alitok.common.random import Step
from alitok.config import compose_run
from alitok.data import shapes
from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache
from alitok.ideas.noise_decoder import NoiseDecoder
from alitok.networks.classifier import Classifier
from alitok.reports.curves import read_curves
from alitok.studies import small
from alitok.studies.processes import two_processes
from alitok.training.launch import run
from alitok.training.records import MicroBatch, StepRecord

NOISE = ["--model.tokenizer.decoder.class_path", "alitok.ideas.noise_decoder.NoiseDecoder"]
GAN = [
    *("--model.discriminator", "{class_path: alitok.losses.adversarial.PatchGAN, init_args: {widths: [8, 8]}}"),
    *("--model.adversarial", "{class_path: alitok.losses.adversarial.MagvitGAN}"),
    *("--model.phases", "{main: null, noise: {steps: 8, lr: 1.e-3, adversarial: true}}", "--model.warmup_steps", "0"),
]
QUICK = ["--trainer.callbacks.grid", "null", "--trainer.logger.tensorboard", "null", "--trainer.accelerator", "cpu"]
QUICK += ["--trainer.callbacks.progress", "null", "--trainer.enable_progress_bar", "false"]
STRATEGIES = {
    "single": ["--trainer.devices", "1"],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "fsdp": ["--trainer.devices", "2", "--trainer.strategy.class_path", "alitok.training.parallel.FSDP2"],
}


def decoder(noisy: bool = True) -> NoiseDecoder:
    torch.manual_seed(0)
    made = NoiseDecoder(16, 4, 0, code_dim=4, width=32, depth=1, heads=2, causal=False)
    if noisy:
        torch.nn.init.normal_(made.embed.noise_weight)
    return made


def begin(stage: str, folder: Path) -> Path:
    """An artifact of a stage whose weights are drawn from seed 0, so that no two are equal."""
    tokenizer = module_of(tiny(stage, folder)).tokenizer
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_artifact(folder / stage, tokenizer.block, tokenizer, {"kind": "tokenizer"})
    return folder / stage


@pytest.mark.parametrize("stage", ["tokenizer-stage1", "tokenizer-stage2"])
def test_it_begins_as_the_decoder_that_it_starts_from(stage: str, tmp_path: Path) -> None:
    parent = begin(stage, tmp_path)
    module = module_of(tiny(stage, tmp_path, *NOISE, "--model.start_from", str(parent)))
    module._start_from(str(parent))
    assert module.fresh == ["decoder.embed.noise_weight"]
    ids = torch.randint(32, (3, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(module.tokenizer.decode(ids, seed=5), load_tokenizer(parent).decode(ids))
    images = torch.rand(2, 3, 32, 32)
    outputs, expected = (
        tokenizer(images, step=None) for tokenizer in (module.tokenizer.eval(), load_tokenizer(parent))
    )
    assert torch.equal(outputs["image"], expected["image"])


def test_the_formula() -> None:
    made, latents = decoder(), torch.randn(2, 16, 4)
    noise = torch.randn(2, 16, 4)
    linear = torch.nn.Linear(8, 32)
    linear.weight.data = torch.cat([made.embed.weight, made.embed.noise_weight], dim=1).data
    linear.bias.data = made.embed.bias.data
    torch.testing.assert_close(made.embed(torch.cat([latents, noise], -1)), linear(torch.cat([latents, noise], -1)))


def test_the_noise_has_a_gradient_from_the_first_step() -> None:
    made = decoder(noisy=False)
    assert not made.embed.noise_weight.any()
    made(torch.randn(2, 16, 4), step=Step.alone(2))["image"].sum().backward()
    assert made.embed.noise_weight.grad.any()


@torch.no_grad()
def test_what_is_drawn_depends_on_the_seed_and_the_index_alone() -> None:
    made, latents = decoder(), torch.randn(4, 16, 4)
    torch.manual_seed(1)
    whole = made.decode(latents, 3, [7, 8, 9, 10])
    torch.manual_seed(2)
    torch.testing.assert_close(made.decode(latents[2:], 3, [9, 10]), whole[2:])
    for other in (made.decode(latents, 4, [7, 8, 9, 10]), made.decode(latents, 3, [8, 9, 10, 11])):
        assert (other - whole).abs().flatten(1).amax(1).min() > 1e-3
    assert torch.equal(made(latents)["image"], made.decode(latents))


@torch.no_grad()
def test_a_step_draws_by_seed_number_and_place() -> None:
    made, latents = decoder(), torch.randn(4, 16, 4)

    def image(rows: Sequence[int], seed: int = 0, number: int = 5) -> Tensor:
        places = range(rows[0], rows[-1] + 1)
        return made(latents[rows[0] : rows[-1] + 1], step=Step(seed, number, 10, 4, places))["image"]

    whole = image(range(4))
    torch.testing.assert_close(torch.cat([image([0, 1]), image([2, 3])]), whole)
    for other in (image(range(4), seed=1), image(range(4), number=6)):
        assert (other - whole).abs().flatten(1).amax(1).min() > 1e-3


def test_the_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    """L1 of pixels in [-1, 1], LPIPS, and a tenth of the non-saturating term; hinge and LeCam for the discriminator."""
    ideas = DEMO.parent / "ideas" / "noise-decoder.yaml"
    config = compose_run([DEMO.parent / "imagenet256" / "tokenizer-stage2.yaml", ideas])["model"]["init_args"]
    assert config["losses"].keys() == {"l1", "lpips"}
    (phase,) = config["phases"].values()
    assert phase["adversarial"]
    assert phase["weights"] == {"l1": 2.0}  # and 1 for LPIPS
    assert (phase["lr"], config["betas"], config["warmup_steps"]) == (1e-4, [0.5, 0.9], 0)

    made = compose_run([DEMO / "tokenizer-stage2.yaml", ideas], ["--define.run", str(tmp_path)])
    module = module_of(small.small(made))
    images = torch.rand(4, 3, 64, 64)
    part = MicroBatch({"image": images}, 1.0, Step(0, 0, 10, 4, range(4)), True)
    loss = module._tokenizer_loss(part, module.schedule.at(0), StepRecord(0, False))
    image = module.tokenizer(images, step=part.step)["image"]
    logits = module.discriminator(image).flatten(1).mean(1)
    expected = (2 * image - 2 * images).abs().mean() + 0.1 * (1 + (-logits).exp()).log().mean()
    torch.testing.assert_close(loss, expected)
    assert (module.adversarial.lecam, module.adversarial.decay) == (0.05, 0.999)


def test_the_decoder_alone_trains_with_the_gan(tmp_path: Path) -> None:
    parent = begin("tokenizer-stage2", tmp_path)
    config = tiny("tokenizer-stage2", tmp_path, *NOISE, *GAN, "--model.start_from", str(parent))
    module = train(config, 2)
    before, after = load_tokenizer(parent).state_dict(), module.tokenizer.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"decoder"}
    assert after["decoder.embed.noise_weight"].any()


@pytest.fixture
def noisy(golden: Any, small_tokenizer_block: Any, tmp_path: Path) -> Path:
    """An artifact whose noise has weights, with the encoder and the codes of `artifacts`."""
    block = small_tokenizer_block(2)
    block["init_args"]["decoder"]["class_path"] = "alitok.ideas.noise_decoder.NoiseDecoder"
    save_artifact(tmp_path / "tokenizer", block, golden.randomize(build(block)), {"kind": "tokenizer"})
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("verb", ["evaluate", "pairs", "reconstruct"])
def test_no_verb_draws_by_its_batches(
    verb: str, noisy: Path, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {name: shapes.SHAPES[name] for name in ("circle", "square", "star")})
    classifier, drawn = tmp_path / "classifier", []
    Classifier(3, width=4).save(classifier)
    for batch in (2, 5):
        out = tmp_path / str(batch)
        words = [verb, "--tokenizer", str(noisy)]
        if verb == "evaluate":
            words += ["--reconstruction", "--data", "shapes", "--count", "5", "--batch", str(batch)]
            main([*words, "--extractor", str(classifier), "--json", str(out)])
            drawn.append(torch.tensor([json.loads(out.read_text())[name] for name in ("psnr", "ssim", "rfid")]))
        elif verb == "pairs":
            words += ["--generator", str(artifacts / "generator"), "--data", "shapes", "--count", "5"]
            main([*words, "--batch", str(batch), "--out", str(out)])
            cache = TokenCache(out)
            drawn.append(cache.gather(torch.arange(5), torch.ones(5, dtype=torch.int64)))
        else:
            monkeypatch.setattr("alitok.commands.reconstruct.BATCH", batch)
            source = open_source("shapes", "val", size=32, count=5)
            for index in range(5):
                source[index][0].save(tmp_path / f"p{index}.png")
            main([*words, *(str(tmp_path / f"p{index}.png") for index in range(5)), "--out", str(out)])
            pictures = [np.asarray(Image.open(out / f"p{index}.png"), dtype=np.float32) for index in range(5)]
            drawn.append(torch.from_numpy(np.stack(pictures)))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1 if verb == "reconstruct" else 1e-3)


def configuration(folder: Path, strategy: str, parent: Path) -> dict[str, Any]:
    words = [*NOISE, *GAN, *QUICK, *STRATEGIES[strategy], "--model.start_from", str(parent)]
    words += ["--define.run", str(folder / strategy), "--data.micro_batch", "2", "--trainer.max_steps", "4"]
    words += ["--trainer.val_check_interval", "4", "--data.val_count", "6", "--trainer.log_every_n_steps", "1"]
    return tiny("tokenizer-stage2", folder / strategy, *words)


def work(rank: int, folder: Path, parent: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        run("fit", configuration(folder, strategy, parent))


@pytest.mark.slow
def test_strategies_agree_in_training_and_validation(tmp_path: Path) -> None:
    parent = begin("tokenizer-stage2", tmp_path)
    run("fit", configuration(tmp_path, "single", parent))
    two_processes(work, tmp_path, parent)
    weights, values = [], []
    for strategy in STRATEGIES:
        folder = tmp_path / strategy / "stage2"
        weights.append(load_file(folder / "artifact" / "model.safetensors"))
        curves = read_curves(folder)
        values.append({name: dict(points) for name, points in curves.items() if name.startswith("val/")})
    for other in (1, 2):
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[other][name], rtol=0, atol=1e-4, msg=name)
        assert values[0].keys() == values[other].keys() >= {"val/psnr"}
        for name in values[0]:
            assert values[other][name] == pytest.approx(values[0][name], rel=1e-3), name

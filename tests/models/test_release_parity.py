"""The tokenizer against the public release, at full size: 390 M parameters, so this file needs 5 GB of memory."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alitok.artifacts.release import tokenizer_from_release, tokenizer_to_release
from alitok.losses.adversarial import BlurDiscriminator, HingeGAN
from alitok.losses.prefix import PrefixStrip
from alitok.losses.terms import MSE, QuantizerLoss


@pytest.mark.parametrize(("stage", "keys"), [(1, "official_stage1_keys"), (2, "official_tokenizer_keys")])
def test_names_and_shapes_are_the_releases(golden, release_skeletons, stage, keys):
    theirs = tokenizer_to_release(release_skeletons[stage].state_dict())
    assert {name: list(tensor.shape) for name, tensor in theirs.items()} == golden.json(keys)
    assert tokenizer_from_release(theirs).keys() == release_skeletons[stage].state_dict().keys()


def test_parameter_counts(release_skeletons):
    counts = {stage: sum(p.numel() for p in model.parameters()) for stage, model in release_skeletons.items()}
    assert counts == {1: 390_623_032, 2: 389_899_308}
    assert sum(p.numel() for p in release_skeletons[2].decoder.parameters()) == 303_479_564


def test_inference(golden, release_tokenizers):
    expected = golden.arrays("tokenizer_release")
    model = release_tokenizers[2]
    images = golden.images(2)
    with torch.no_grad():
        outputs = model(images)
    assert_close(outputs["latents"], expected["latents"], rtol=0, atol=1e-4)
    assert torch.equal(outputs["ids"], expected["indices"])
    check_image(outputs["image"], expected, "recon_")
    losses = outputs["quantizer_losses"]
    assert_close(losses["commitment"], expected["commitment"], rtol=1e-5, atol=0)
    assert_close(losses["codebook"], expected["codebook"], rtol=1e-5, atol=0)
    assert_close(sum(losses.values()), expected["vq_loss"], rtol=1e-5, atol=0)
    # decoding ids is the same path without the straight-through sum, which rounds
    check_image(model.decode(expected["indices"]), expected, "recon_")


def check_image(image: Tensor, expected: dict[str, Tensor], prefix: str) -> None:
    parts = {
        "mean": image.mean((2, 3)),
        "crop": image[:, :, 96:128, 96:128],
        "rows": image[:, :, ::37, ::41],
    }
    for name, part in parts.items():
        if prefix + name in expected:
            assert_close(part, expected[prefix + name], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def discriminator(golden) -> nn.Module:
    module = BlurDiscriminator()
    shapes = golden.json("official_discriminator_keys")
    filled = golden.fill({f"discriminator.{name}": s for name, s in shapes.items() if not name.endswith("kernel")})
    module.load_state_dict({k.removeprefix("discriminator."): v for k, v in filled.items()}, strict=False)
    return module.requires_grad_(False)


@pytest.mark.parametrize("stage", [1, 2])
def test_training_step(golden, release_tokenizers, discriminator, stage):
    arrays = golden.arrays("train_release")
    expected = {key.removeprefix(f"stage{stage}_"): v for key, v in arrays.items() if key.startswith(f"stage{stage}_")}
    model = release_tokenizers[stage]
    frozen = [model.encoder, model.quantizer] if stage == 2 else []
    model.train()
    for part in frozen:
        part.requires_grad_(False)
    try:
        batch = {"image": golden.images(2)}
        outputs = model(batch["image"])
        gan = HingeGAN()
        terms = {
            "mse": MSE()(batch, outputs) + (PrefixStrip()(batch, outputs) if stage == 1 else 0),
            "vq": QuantizerLoss()(batch, outputs),
            "gan": gan.generator_loss(discriminator(outputs["image"])),
        }
        (terms["mse"] + terms["gan"] + (terms["vq"] if stage == 1 else 0)).backward()
        gradients = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(True).eval()

    for name, value in terms.items():
        assert_close(value.double(), expected[name], rtol=1e-5, atol=0)
    with torch.no_grad():
        real, fake = discriminator(batch["image"]), discriminator(outputs["image"].detach())
        disc = gan.discriminator_loss(real, fake)[0]
    assert_close(disc.double(), expected["disc"], rtol=1e-5, atol=0)
    assert_close(real.mean().double(), expected["logit_real"], rtol=0, atol=1e-4)
    assert_close(fake.mean().double(), expected["logit_fake"], rtol=0, atol=1e-4)
    assert torch.equal(outputs["ids"], expected["indices"])
    check_image(outputs["image"].detach(), expected, "recon_")
    if stage == 1:
        assert_close(outputs["prefix"].detach(), expected["aux"], rtol=0, atol=1e-4)
    else:
        assert outputs["statistics"] is None

    quantizer = copy.deepcopy(model.quantizer)  # the other stage uses the same codebook
    if stage == 1:
        quantizer.update(outputs["statistics"])
        assert_close(quantizer.usage, expected["embed_prob_after"], rtol=1e-5, atol=1e-7)
    assert_close(quantizer.codebook.weight.detach()[::64], expected["codebook_after"], rtol=0, atol=1e-5)

    norms = golden.json(f"stage{stage}_release_gradnorms")
    ours = {name: float(norm) for name, norm in tokenizer_to_release(gradients).items()}
    assert ours.keys() == norms.keys()
    worst = max(norms, key=lambda name: abs(ours[name] - norms[name]) / norms[name])
    assert ours[worst] == pytest.approx(norms[worst], rel=1e-3), worst
    if stage == 2:
        every = tokenizer_to_release(release_tokenizers[2].state_dict()).keys()
        assert every - ours.keys() == set(golden.json("stage2_frozen"))

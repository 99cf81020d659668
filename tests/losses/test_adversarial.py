"""Adversarial losses: values by hand, the release's numbers, LeCam's running means."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alitok.losses.adversarial import HingeGAN, MagvitGAN, hinge

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "train_release.npz")
REAL = torch.tensor([[2.0, 0.5], [-1.0, 0.0]]).view(2, 1, 1, 2)
FAKE = torch.tensor([[-2.0, 0.5], [1.0, 0.0]]).view(2, 1, 1, 2)


def test_hinge_by_hand() -> None:
    # real: relu(1 - x) = 0, 0.5, 2, 1; fake: relu(1 + x) = 0, 1.5, 2, 1
    assert hinge(REAL, FAKE).item() == pytest.approx(0.5 * (3.5 / 4 + 4.5 / 4))


def test_release_form_by_hand() -> None:
    gan = HingeGAN()
    loss, statistics = gan.discriminator_loss(REAL, FAKE)
    assert loss.item() == pytest.approx(0.1 * 1.0)
    assert gan.generator_loss(FAKE).item() == pytest.approx(0.1 * 0.05 * 0.5 / 4)
    assert statistics["real_mean"].item() == pytest.approx(0.375)
    assert statistics["fake_mean"].item() == pytest.approx(-0.125)
    gan.update(statistics)
    assert not gan.state_dict()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_release_numbers(stage: str) -> None:
    """The golden logits lie inside (-1, 1), where hinge and generator term depend on their means alone."""
    real, fake = (
        torch.tensor(float(GOLDEN[f"{stage}_{name}"])).view(1, 1, 1, 1) for name in ("logit_real", "logit_fake")
    )
    gan = HingeGAN()
    assert gan.generator_loss(fake).item() == pytest.approx(float(GOLDEN[f"{stage}_gan"]), rel=1e-5)
    assert gan.discriminator_loss(real, fake)[0].item() == pytest.approx(float(GOLDEN[f"{stage}_disc"]), rel=1e-5)


def test_paper_generator_term_takes_the_mean_of_an_image_first() -> None:
    softplus = [math.log1p(math.exp(-mean)) for mean in (-0.75, 0.5)]
    assert MagvitGAN().generator_loss(FAKE).item() == pytest.approx(0.1 * sum(softplus) / 2)


def test_lecam_by_hand() -> None:
    gan = MagvitGAN(lecam=0.05, decay=0.5)
    loss, statistics = gan.discriminator_loss(REAL, FAKE)
    # running means are 0: relu(real - 0)^2 = 4, 0.25, 0, 0 and relu(0 - fake)^2 = 4, 0, 0, 0
    assert loss.item() == pytest.approx(1.0 + 0.05 * (4.25 / 4 + 4 / 4))
    assert gan.real_mean == 0
    gan.update(statistics)
    assert gan.real_mean.item() == pytest.approx(0.1875)
    assert gan.fake_mean.item() == pytest.approx(-0.0625)
    loss, statistics = gan.discriminator_loss(REAL, FAKE)
    real = sum(max(x + 0.0625, 0) ** 2 for x in (2, 0.5, -1, 0)) / 4
    fake = sum(max(0.1875 - x, 0) ** 2 for x in (-2, 0.5, 1, 0)) / 4
    assert loss.item() == pytest.approx(1.0 + 0.05 * (real + fake))
    gan.update(statistics)
    assert gan.real_mean.item() == pytest.approx(0.5 * 0.1875 + 0.5 * 0.375)
    assert MagvitGAN(lecam=0.0).discriminator_loss(REAL, FAKE)[0].item() == pytest.approx(1.0)


def test_decay_of_the_paper() -> None:
    gan = MagvitGAN()
    for _ in range(3):
        gan.update({"real_mean": torch.tensor(1.0), "fake_mean": torch.tensor(-1.0)})
    assert gan.real_mean.item() == pytest.approx(1 - 0.999**3, rel=1e-4)
    assert gan.fake_mean.item() == pytest.approx(0.999**3 - 1, rel=1e-4)


def test_micro_batches_give_the_batch() -> None:
    whole, parts = MagvitGAN(), MagvitGAN()
    for gan in (whole, parts):
        gan.update({"real_mean": torch.tensor(50.0), "fake_mean": torch.tensor(-50.0)})
    loss, statistics = whole.discriminator_loss(REAL, FAKE)
    pieces = [parts.discriminator_loss(REAL[i : i + 1], FAKE[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(sum(piece[0] for piece in pieces) / 2, loss)
    whole.update(statistics)
    parts.update({key: (pieces[0][1][key] + pieces[1][1][key]) / 2 for key in statistics})
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_running_means_are_saved_and_losses_have_gradients() -> None:
    gan, resumed = MagvitGAN(), MagvitGAN()
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    loss, statistics = gan.discriminator_loss(real, fake)
    gan.update(statistics)
    loss.backward()  # after the update: the loss does not lean on the buffers
    assert real.grad.abs().sum() > 0
    assert fake.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in statistics.values())
    resumed.load_state_dict(gan.state_dict())
    assert sorted(gan.state_dict()) == ["fake_mean", "real_mean"]
    assert resumed.discriminator_loss(REAL, FAKE)[0] == gan.discriminator_loss(REAL, FAKE)[0]
    assert not list(gan.parameters())


@pytest.mark.parametrize("gan", [HingeGAN(), MagvitGAN()])
def test_half_precision_logits_are_lifted(gan) -> None:
    real, fake = REAL.to(torch.bfloat16), FAKE.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [gan.generator_loss(fake), gan.discriminator_loss(real, fake)[0]]
    assert all(value.dtype == torch.float32 for value in values)
    assert values[0] == gan.generator_loss(FAKE)
    assert values[1] == gan.discriminator_loss(REAL, FAKE)[0]

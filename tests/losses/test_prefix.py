"""The auxiliary loss on the prefix: targets by hand, and who learns from it."""

import pytest
import torch

from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.losses.perceptual import ConvNeXtLogits, Perceptual
from alitok.losses.prefix import PrefixRow, PrefixStrip


class Pixels(Perceptual):
    """A stand-in distance that keeps the image it was shown."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def check(self) -> None:
        self.calls.append("check")

    def setup(self, device: torch.device | str) -> None:
        self.calls.append(str(device))

    def distance(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return (images - targets).square().flatten(1).sum(dim=1)


def example(patch: int = 4, columns: int = 4, rows: int = 3, extra: int = 0):
    torch.manual_seed(0)
    batch = {"image": torch.rand(2, 3, patch * rows, patch * columns)}
    outputs = {
        "image": torch.rand(2, 3, patch * rows, patch * columns, requires_grad=True),
        "prefix": torch.rand(2, 3, patch, patch * (columns + extra), requires_grad=True),
    }
    return batch, outputs


def test_strip_is_corner_patch_then_first_row() -> None:
    batch, outputs = example(extra=1)
    strip = torch.cat([batch["image"][:, :, :4, :4], batch["image"][:, :, :4]], dim=-1)
    assert PrefixStrip()(batch, {"prefix": strip}).item() == 0
    moved = {"prefix": strip + 0.5}
    assert PrefixStrip()(batch, moved).item() == pytest.approx(0.25 * 10 * 5 / 12)
    assert PrefixStrip(factor=1.0)(batch, moved).item() == pytest.approx(0.25 * 5 / 12)
    corner = strip.clone()
    corner[..., :4] += 0.5
    assert PrefixStrip()(batch, {"prefix": corner}).item() == pytest.approx(0.25 / 5 * 10 * 5 / 12)
    PrefixStrip()(batch, outputs).backward()
    assert outputs["prefix"].grad.abs().sum() > 0
    assert outputs["image"].grad is None


def test_release_scale() -> None:
    batch = {"image": torch.zeros(1, 3, 256, 256)}
    value = PrefixStrip()(batch, {"prefix": torch.ones(1, 3, 16, 272)})
    assert value.item() == pytest.approx(10 * 17 / 256)


def test_row_by_pixels_alone() -> None:
    batch, outputs = example()
    row = batch["image"][:, :, :4]
    assert PrefixRow()(batch, {"prefix": row}).item() == 0
    assert PrefixRow(mse_weight=2.0)(batch, {"prefix": row + 0.5}).item() == pytest.approx(0.5)
    PrefixRow()(batch, outputs).backward()
    assert outputs["image"].grad is None


def test_row_assembles_an_image_that_only_the_prefix_learns_from() -> None:
    batch, outputs = example()
    pixels = Pixels()
    value = PrefixRow(perceptual=pixels, mse_weight=0.0, perceptual_weight=3.0)(batch, outputs)
    assert torch.equal(pixels.seen[:, :, :4], outputs["prefix"])
    assert torch.equal(pixels.seen[:, :, 4:], outputs["image"][:, :, 4:])
    assembled = torch.cat([outputs["prefix"], outputs["image"][:, :, 4:]], dim=2)
    expected = 3 * (assembled - batch["image"]).square().sum() / 2
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert outputs["prefix"].grad.abs().min() > 0
    assert outputs["image"].grad is None
    both = PrefixRow(perceptual=pixels, mse_weight=1.0, perceptual_weight=3.0)(batch, outputs)
    alone = PrefixRow()(batch, outputs)
    assert both.item() == pytest.approx((value + alone).item())


def test_row_with_a_network_and_autocast() -> None:
    batch, outputs = example(patch=8)
    term = PrefixRow(perceptual=ConvNeXtLogits("random:0"))
    term.check()
    term.setup("cpu")
    plain = term(batch, outputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = term(batch, outputs)
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)
    under.backward()
    assert outputs["prefix"].grad.abs().sum() > 0
    assert outputs["image"].grad is None


def test_row_checks_and_sets_up_its_perceptual_part() -> None:
    pixels = Pixels()
    term = PrefixRow(perceptual=pixels)
    term.check()
    term.setup("cpu")
    assert pixels.calls == ["check", "cpu"]


def test_built_from_a_configuration(tmp_path) -> None:
    term = build(
        {
            "class_path": "alitok.losses.prefix.PrefixRow",
            "init_args": {
                "perceptual": {
                    "class_path": "alitok.losses.perceptual.ConvNeXtLogits",
                    "init_args": {"weights": str(tmp_path / "gone.pth")},
                }
            },
        }
    )
    with pytest.raises(BadInput, match="Missing weight file convnext_small"):
        term.check()


@pytest.mark.parametrize("term", [PrefixStrip(), PrefixRow()])
def test_absent_or_unfit_strip(term) -> None:
    batch, _ = example()
    with pytest.raises(BadInput, match="prefix loss needs a decoder with prefix_head: true"):
        term(batch, {"image": batch["image"]})
    with pytest.raises(BadInput, match=r"needs \d prefix tokens for images 16 wide"):
        term(batch, {"image": batch["image"], "prefix": torch.zeros(2, 3, 4, 24)})

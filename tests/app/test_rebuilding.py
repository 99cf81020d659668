"""Reconstructions: their measures, the first tokens, a replaced token, the codes near another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from alitok.app.layout import GRAY
from alitok.app.opened import Opened
from alitok.app.rebuilding import difference, neighbors, open_picture, rebuild
from alitok.common.errors import BadInput
from alitok.evaluation.reconstruction import ssim
from alitok.models.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(opened: Opened) -> Tokenizer:
    return next(iter(opened.tokenizers.values()))


@pytest.fixture
def original() -> Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_measures_are_the_formulas(tokenizer: Tokenizer, original: Tensor) -> None:
    made = rebuild(tokenizer, original)
    with torch.no_grad():
        expected = tokenizer.reconstruct(original[None])[0].clamp(0, 1)
    assert_close(made.image, expected)
    mse = (expected - original).double().square().mean()
    assert made.psnr == pytest.approx(float(-10 * mse.log10()), abs=1e-3)
    assert made.ssim == pytest.approx(ssim(expected[None], original[None]).item(), abs=1e-5)
    assert made.change is None
    assert len(made.ids) == 21


def test_a_difference_is_enlarged_and_bounded() -> None:
    left, right = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.1, 0.5, 0.0])
    assert_close(difference(left, right), torch.tensor([0.4, 0.0, 1.0]))


def test_a_replaced_token_changes_the_picture(tokenizer: Tokenizer, original: Tensor) -> None:
    before = rebuild(tokenizer, original)
    code = (before.ids[9][0] + 1) % 24
    made = rebuild(tokenizer, original, replaced={9: (code,)})
    assert made.ids[9] == (code,)
    assert [ids for place, ids in enumerate(made.ids) if place != 9] == before.ids[:9] + before.ids[10:]
    assert made.change is not None
    assert_close(made.change, difference(made.image, before.image))
    assert made.change.max() > 0
    same = rebuild(tokenizer, original, replaced={9: before.ids[9]})
    assert same.change is not None
    assert not same.change.any()
    with pytest.raises(BadInput, match="24 is no token: give an id of 0 to 23"):
        rebuild(tokenizer, original, replaced={9: (24,)})


def test_first_tokens_of_a_tokenizer_that_decodes_all(tokenizer: Tokenizer, original: Tensor) -> None:
    made = rebuild(tokenizer, original, keep=10)  # 5 of them are the prefix
    assert made.psnr is None
    gray = (made.image == GRAY).all(0).view(4, 8, 4, 8).transpose(1, 2).flatten(2).all(-1).flatten()
    assert gray.tolist() == [False] * 5 + [True] * 11
    whole = rebuild(tokenizer, original, keep=21)
    assert torch.equal(whole.image, rebuild(tokenizer, original).image)
    for count in (0, 22):
        with pytest.raises(BadInput, match=f"1 to 21 tokens for this tokenizer, not {count}"):
            rebuild(tokenizer, original, keep=count)


def test_the_nearest_codes(tokenizer: Tokenizer) -> None:
    near, far = neighbors(tokenizer, 3)
    latents = tokenizer.quantizer.lookup(torch.arange(24)[None])[0].detach()
    distance = {code: float((latents[code] - latents[3]).norm()) for code in range(24) if code != 3}
    ordered = sorted(distance, key=lambda code: distance[code])
    assert near == ordered[:4]
    assert far == ordered[::-1][:4]
    with pytest.raises(BadInput, match="no code 24"):
        neighbors(tokenizer, 24)


def test_odd_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "print.jpg")
    picture = open_picture(tmp_path / "print.jpg", 32)
    assert picture.shape == (3, 32, 32)
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n?")
    with pytest.raises(BadInput, match=r"Cannot read the image broken\.png") as error:
        open_picture(tmp_path / "broken.png", 32)
    assert str(tmp_path) not in str(error.value)

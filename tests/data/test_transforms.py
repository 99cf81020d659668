import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image

from alitok.common.random import stream
from alitok.data import pictures as transforms
from alitok.data.pictures import center_crop, ten_crop, to_tensor, train_crop


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 91), (32, 32)])
def test_resize_is_torchvisions(size):
    image = picture(*size)
    whole = to_tensor(F.resize(image, 32, F.InterpolationMode.BILINEAR))
    top, left, _ = torch.rand(3, generator=stream(0), dtype=torch.float64).tolist()
    top, left = int(top * (whole.shape[1] - 31)), int(left * (whole.shape[2] - 31))
    expected = whole[:, top : top + 32, left : left + 32]
    assert torch.equal(train_crop(image, 32, stream(0), flip=False), expected)


def test_train_crop_is_a_function_of_the_generator():
    image = picture(64, 40)
    first, again = (train_crop(image, 32, stream(0, "augment", 5)) for _ in range(2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert len({train_crop(image, 32, stream(0, "augment", p)).sum().item() for p in range(20)}) > 10


def test_train_crop_reaches_both_edges_and_mirrors_half():
    ramp = np.tile(np.arange(36, dtype=np.uint8)[None, :, None], (32, 1, 3))
    rows = [train_crop(Image.fromarray(ramp), 32, stream(p))[0, 0] for p in range(400)]
    mirrored = sum(bool(row[0] > row[-1]) for row in rows)
    assert 150 < mirrored < 250
    assert {int(row.min()) for row in rows} == {0, 1, 2, 3, 4}
    plain = [train_crop(Image.fromarray(ramp), 32, stream(p), flip=False)[0, 0] for p in range(50)]
    assert all(row[0] < row[-1] for row in plain)
    assert [int(row.min()) for row in plain] == [int(row.min()) for row in rows[:50]]


def test_train_crop_without_random_crop_takes_the_middle():
    image = picture(64, 40)
    cut = train_crop(image, 32, stream(0), crop=False, flip=False)
    assert torch.equal(cut, to_tensor(center_crop(image, 32)))


def test_center_crop_halves_then_cuts_the_middle():
    image = picture(200, 133)
    half = image.resize((100, 66), Image.Resampling.BOX)
    third = half.resize((round(100 * 40 / 66), 40), Image.Resampling.BICUBIC)
    left = (third.width - 40) // 2
    expected = np.asarray(third)[:, left : left + 40]
    assert np.array_equal(np.asarray(center_crop(image, 40)), expected)
    same = picture(40, 40)
    assert np.array_equal(np.asarray(center_crop(same, 40)), np.asarray(same))


@pytest.mark.parametrize("size", [(281, 281), (500, 375), (56, 90)])
def test_ten_crop_is_torchvisions(size):
    image = picture(*size)
    base = center_crop(image, 281)
    expected = torch.stack([to_tensor(view) for view in F.ten_crop(base, [256, 256])])
    views = ten_crop(image, 256)
    assert views.shape == (10, 3, 256, 256)
    assert torch.equal(views, expected)


def test_ten_crop_positions():
    image = picture(281, 281)
    whole, views = to_tensor(image), ten_crop(image, 256)
    for view, (top, left) in enumerate([(0, 0), (0, 25), (25, 0), (25, 25), (12, 12)]):
        assert torch.equal(views[view], whole[:, top : top + 256, left : left + 256])
    for view, (top, left) in enumerate([(0, 25), (0, 0), (25, 25), (25, 0), (12, 13)], start=5):
        assert torch.equal(views[view], whole[:, top : top + 256, left : left + 256].flip(-1))


def test_ten_crop_of_another_size():
    assert ten_crop(picture(80, 70), 32).shape == (10, 3, 32, 32)
    views = ten_crop(picture(80, 70), 32, resize=32)
    assert torch.equal(views[0], views[4])


CROPS = {
    "center": lambda image: to_tensor(center_crop(image, 32)),
    "random": lambda image: train_crop(image, 32, stream(3), flip=False),
    "ten": lambda image: ten_crop(image, 32),
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (7, 300), (310, 31), (32, 400), (20, 20)])
def test_the_part_of_a_thin_picture_is_that_of_the_whole(crop, size, monkeypatch):
    image = picture(*size)
    whole = CROPS[crop](image)
    monkeypatch.setattr(transforms, "LARGEST_SCALED", 0)
    assert (CROPS[crop](image).int() - whole.int()).abs().max() <= 2


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (3, 900_000)])
def test_a_thin_picture_takes_no_gigabytes(crop, size, monkeypatch):
    scaled = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: scaled.append(a[1]) or resize(*a, **k))
    ramp = Image.linear_gradient("L").convert("RGB").resize(size)
    assert CROPS[crop](ramp).shape[-2:] == (32, 32)
    assert all(width * height <= transforms.LARGEST_SCALED for width, height in scaled)

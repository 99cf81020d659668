import numpy as np
import pytest
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.shapes import Shapes


def pixels(data: Shapes, index: int) -> np.ndarray:
    return np.asarray(data[index][0])


def test_a_picture_depends_on_seed_split_and_index_only():
    few, many = Shapes("train", 32, count=5), Shapes("train", 32, count=500)
    _ = [many[i] for i in (7, 3, 11)]
    assert np.array_equal(pixels(few, 4), pixels(many, 4))
    assert not np.array_equal(pixels(few, 4), pixels(Shapes("val", 32), 4))
    assert not np.array_equal(pixels(few, 4), pixels(Shapes("train", 32, seed=1), 4))


def test_labels_cycle_through_ten_named_classes():
    data = Shapes("val", 16, count=25)
    assert len(data) == 25
    assert [data[i][1] for i in range(25)] == [i % 10 for i in range(25)]
    assert len(set(data.class_names)) == 10
    with pytest.raises(IndexError):
        data[25]


@pytest.mark.parametrize("index", range(10))
def test_the_same_picture_at_every_size(index):
    large = Image.fromarray(pixels(Shapes("train", 128), index)).resize((32, 32), Image.Resampling.BOX)
    error = np.asarray(large).astype(float) - pixels(Shapes("train", 32), index)
    assert np.sqrt((error**2).mean()) < 12


def test_smooth_enough_for_a_small_tokenizer():
    # what is left after one color for every 4 x 4 pixels
    data = Shapes("train", 64)
    errors = []
    for i in range(30):
        picture = data[i][0]
        small = picture.resize((16, 16), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)
        errors.append(((np.asarray(small, dtype=float) - np.asarray(picture)) ** 2).mean() / 255**2)
    assert -10 * np.log10(np.mean(errors)) > 20


def test_shapes_stand_out_from_their_backgrounds():
    data = Shapes("train", 48)
    spread = [pixels(data, i).reshape(-1, 3).std(0).max() for i in range(100)]
    assert min(spread) > 8


@pytest.mark.parametrize(("size", "count"), [(4, 10), (32, 0)])
def test_impossible_sizes_and_counts(size, count):
    with pytest.raises(BadInput, match="size of at least 8"):
        Shapes("train", size, count)

import pytest
import torch
from torch.testing import assert_close

from alitok.models.transformer import generator_rope, rotate


def test_table_is_the_releases(golden):
    assert_close(generator_rope(17, (16, 16), 32), golden.arrays("ar_tiny_release")["freqs"], rtol=0, atol=1e-6)


def test_positions_of_each_part():
    table = generator_rope(num_prefix=3, grid=(2, 5), head_dim=8)
    assert table.shape == (1 + 3 + 10, 4, 2)
    assert not table[0].any()  # the class token
    prefix = 2 * 10000.0 ** (-torch.arange(0, 8, 2) / 8)  # the third prefix token has position 2
    assert_close(table[3, :, 0], prefix.cos())
    row, column = 3 + 1, 3 + 4  # numbered from K on
    frequencies = 10000.0 ** (-torch.arange(0, 4, 2) / 4)
    angles = torch.cat([row * frequencies, column * frequencies])
    assert_close(table[1 + 3 + 1 * 5 + 4, :, 1], angles.sin())


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    table = generator_rope(num_prefix=12, grid=(0, 0), head_dim=32)[1:]
    queries, keys = (rotate(x.expand(1, 1, 12, 32), table) for x in (q, k))
    assert_close(queries.norm(dim=-1), q.norm().expand(1, 1, 12))
    products = (queries @ keys.mT)[0, 0]
    assert_close(products[3:, 3:], products[:-3, :-3], rtol=1e-4, atol=1e-4)


def test_rotation_is_in_float32_by_adjacent_pairs():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16().view(1, 1, 1, 4)
    quarter, none = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    rotated = rotate(x, torch.stack([quarter, none])[None])
    assert rotated.dtype == torch.float32
    assert rotated.flatten().tolist() == [-2.0, 1.0, 3.0, 4.0]


def test_head_dimension_must_split_in_four():
    with pytest.raises(ValueError, match="divides by 4, not 6"):
        generator_rope(1, (2, 2), 6)


def test_table_is_real_under_a_meta_device():
    with torch.device("meta"):
        table = generator_rope(1, (2, 2), 8)
    assert table.device.type == "cpu"


@pytest.mark.parametrize("head_dim", [4, 24, 32, 56, 64])
def test_the_layout_changes_no_bit(head_dim: int) -> None:
    """Each row at its own positions, as in a window, or all rows at one position."""
    table = generator_rope(0, (5, 5), head_dim)[:12]
    x = torch.randn(3, 2, 12, head_dim, generator=torch.Generator().manual_seed(0))
    places = torch.stack([torch.arange(start, start + 4) for start in (0, 3, 8)])
    window = rotate(torch.stack([x[row, :, places[row]] for row in range(3)]), table[places][:, None])
    for row in range(3):
        for column, place in enumerate(places[row].tolist()):
            alone = rotate(x[:, :, place : place + 1], table[place : place + 1])[row]
            assert torch.equal(window[row, :, column : column + 1], alone)

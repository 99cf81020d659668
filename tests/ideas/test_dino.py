"""DINOv2's ViT against the numbers of its own code, and against torch's transformer layers."""

import pytest
import torch
from torch import nn

from alitok.ideas.shared.dino import TABLE, DINOv2

SMALL = {"width": 16, "depth": 2, "heads": 2}
# of facebookresearch/dinov2, DinoVisionTransformer with these sizes, filled as below: the first channel of the first
# four patches, the last four channels of the last patch, the mean of all absolute values
REFERENCE = {
    28: (
        [0.04313606, 0.09878395, -0.43064833, -0.44080341],
        [1.93933308, 0.57013589, 0.44269106, 0.35298911],
        0.73682505,
    ),
    70: (
        [-0.36463365, -0.38608196, -0.30900174, -0.36084354],
        [2.08196617, 0.97118914, 0.65312225, 0.41081116],
        0.74304980,
    ),
}


@torch.no_grad()
def filled() -> DINOv2:
    model = DINOv2(**SMALL)
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        values = (torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + number).sin().view_as(parameter) * 0.3
        parameter.copy_(values + (0.5 if parameter.ndim == 1 else 0))
    return model


@pytest.mark.parametrize("size", REFERENCE)
def test_the_numbers_of_its_own_code(size: int) -> None:
    images = (torch.arange(3 * size * size, dtype=torch.float64) * 0.01).sin().view(1, 3, size, size).float()
    with torch.no_grad():
        maps = filled()(images)
    assert maps.shape == (1, 16, size // 14, size // 14)
    first, last, mean = REFERENCE[size]
    rows = maps.flatten(2)[0]
    torch.testing.assert_close(rows[0, :4], torch.tensor(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[-4:, -1], torch.tensor(last), rtol=1e-4, atol=1e-5)
    assert rows.abs().mean().item() == pytest.approx(mean, rel=1e-4)


def test_a_block_is_a_pre_norm_layer_if_its_scales_are_one() -> None:
    torch.manual_seed(0)
    block = DINOv2(**SMALL).blocks[0]
    plain = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    names = {
        "self_attn.in_proj_weight": block.attn.qkv.weight,
        "self_attn.in_proj_bias": block.attn.qkv.bias,
        "self_attn.out_proj.weight": block.attn.proj.weight,
        "self_attn.out_proj.bias": block.attn.proj.bias,
        "linear1.weight": block.mlp.fc1.weight,
        "linear1.bias": block.mlp.fc1.bias,
        "linear2.weight": block.mlp.fc2.weight,
        "linear2.bias": block.mlp.fc2.bias,
        **{f"norm{n}.{k}": v for n in (1, 2) for k, v in getattr(block, f"norm{n}").named_parameters()},
    }
    plain.load_state_dict(names)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(block(x), plain(x))


def test_the_table_itself_at_its_own_size() -> None:
    model = filled()
    assert model.positions(TABLE, TABLE) is model.pos_embed
    assert torch.equal(model.positions(16, 16)[:, 0], model.pos_embed[:, 0])

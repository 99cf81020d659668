"""DINOv2's ViT (arXiv 2304.07193), only for features. Parameters have the names of the published files."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
TABLE = 37  # side of the position table in patches, from images of 518 x 518 pixels


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class DINOv2(nn.Module):
    """A ViT of DINOv2 without register tokens; the defaults are ViT-B/14.

    Args:
        width, depth, heads: size of the transformer.
        patch: side of a patch in pixels.
    """

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 14) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # unused, but in the file
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows * columns, width): the table resampled as DINOv2's own code does."""
        if rows == columns == TABLE:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (TABLE, TABLE)).permute(0, 3, 1, 2)
        # DINOv2's code adds 0.1 against rounding. The resampling uses this scale, so the features depend on it.
        scale = ((rows + 0.1) / TABLE, (columns + 0.1) / TABLE)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).mT], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalized as for ImageNet -> (B, width, h, w), the patches after the last norm."""
        patches = self.patch_embed.proj(images)
        rows, columns = patches.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        x = x + self.positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].mT.unflatten(-1, (rows, columns))

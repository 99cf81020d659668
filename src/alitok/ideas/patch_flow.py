"""UniFlow's decoder: a transformer sees all tokens once, then a small network integrates each patch on its own."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.ideas.shared.flow import Flow, TimeEmbedding, TimeLaw
from alitok.ideas.shared.flow_sampler import FlowSampler
from alitok.models.decoder import Decoder
from alitok.models.transformer import Init, init_weights


class Features(nn.Module):
    """In place of a `Decoder`'s image head: the features of the patches as they are."""

    def forward(self, x: Tensor, rows: int) -> Tensor:
        return x


class ResidualBlock(nn.Module):
    """x + gate * MLP(norm(x) (1 + scale) + shift), all three made of the condition; the gate begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class PatchFlow(Flow):
    """`Decoder`'s transformer, and on each patch's features an MLP that gives the velocity of the patch's pixels.

    A step of the integration passes the MLP alone (MAR's head, in UniFlow, arXiv 2510.10575). Without the transformer's
    look at all tokens the patches do not fit together.

    Args:
        image_size, patch_size, num_prefix, code_dim, width, depth, heads, causal, buffer_tokens, drop_prefix, init: as
            `Decoder`; the MLP is as wide as the transformer.
        head_depth: blocks of the MLP.
        times, sampler, scale, null: see `Flow`.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_prefix: int,
        code_dim: int,
        width: int,
        depth: int,
        heads: int,
        causal: bool = False,
        buffer_tokens: int = 1,
        drop_prefix: bool = False,
        init: Init = "paper",
        head_depth: int = 12,
        times: TimeLaw | None = None,
        sampler: FlowSampler | None = None,
        scale: float = 1.0,
        null: float = 0.0,
    ) -> None:
        super().__init__(image_size, code_dim, times, sampler, scale, null)
        self.patch_size = patch_size
        self.body = Decoder(
            image_size,
            patch_size,
            num_prefix,
            code_dim,
            width,
            depth,
            heads,
            causal,
            buffer_tokens,
            drop_prefix=drop_prefix,
            init=init,
        )
        self.body.image_head = Features()  # type: ignore[assignment]
        self.num_latents = self.body.num_latents
        self.embed = nn.Linear(3 * patch_size**2, width)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(head_depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 3 * patch_size**2)
        for part in (self.embed, self.time, self.blocks):
            init_weights(part, init)
        for layer in (self.modulation, self.head, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]

    def condition(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> (B, H * W, width)."""
        features: Tensor = self.body(latents)["image"]
        return features

    def velocity(self, noised: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        size, rows = self.patch_size, self.body.rows
        x = self.embed(rearrange(noised, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size))
        condition = F.silu(condition + self.time(t)[:, None])
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        out = self.head(self.norm_out(x) * (1 + scale) + shift)
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=size, q=size)

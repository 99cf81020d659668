"""UniFlow's decoder: a transformer reads all tokens once, then a small network integrates each patch separately."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.ideas.shared.flow import Flow, TimeEmbedding, TimeLaw
from alitok.ideas.shared.flow_sampler import FlowSampler
from alitok.models.decoder import Decoder
from alitok.models.transformer import Init, init_weights


class Features(nn.Module):
    """Replaces a `Decoder`'s image head: returns the features of the patches unchanged."""

    def forward(self, x: Tensor, rows: int) -> Tensor:
        return x


class ResidualBlock(nn.Module):
    """x + gate * MLP(norm(x) (1 + scale) + shift); gate, scale and shift come from the condition and start at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class PatchFlow(Flow):
    """`Decoder`'s transformer, and an MLP that maps each patch's features to the velocity of its pixels.

    A step of the integration runs only the MLP (MAR's head, in UniFlow, arXiv 2510.10575). Patches fit together
    because the transformer has read all tokens.

    Args:
        image_size, patch_size, num_prefix, code_dim, width, depth, heads, causal, buffer_tokens, drop_prefix, init: as
            for `Decoder`.
        head_depth: blocks of the MLP.
        head_width: width of the MLP, None for the transformer's. A patch's noise passes through it, so it should
            exceed the 3 p^2 numbers of a patch.
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
        head_width: int | None = None,
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
        within = width if head_width is None else head_width
        self.project = nn.Identity() if head_width is None else nn.Linear(width, within)
        self.embed = nn.Linear(3 * patch_size**2, within)
        self.time = TimeEmbedding(within)
        self.blocks = nn.ModuleList(ResidualBlock(within) for _ in range(head_depth))
        self.norm_out = nn.LayerNorm(within, elementwise_affine=False)
        self.modulation = nn.Linear(within, 2 * within)
        self.head = nn.Linear(within, 3 * patch_size**2)
        for part in (self.project, self.embed, self.time, self.blocks):
            init_weights(part, init)
        for layer in (self.modulation, self.head, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]

    def condition(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> (B, H * W, width of the head)."""
        features: Tensor = self.project(self.body(latents)["image"])
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

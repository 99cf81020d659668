"""GPSToken's renderer, reduced: each token becomes a Gaussian that moves and stretches on a map."""

from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.models.decoder import Decoder

WINDOW = 3.0  # standard deviations along an axis beyond which a Gaussian is 0


def logit(x: Tensor) -> Tensor:
    """The logit of numbers in 0..1."""
    return torch.log(x / (1 - x))


class SplatHead(nn.Module):
    """Features of patches -> Gaussians -> a map of their summed features -> a small convolutional network -> pixels.

    A Gaussian has deviations sx and sy, a correlation r and a center, in coordinates from -1 to 1. It starts on its
    patch, with a third of the patch's side as deviation; learned changes, initially 0, are added before a sigmoid.

    Args:
        width: width of the features.
        rows: rows of patches.
        patch_size: side of a patch in pixels.
        channels: number of features of a Gaussian, c.
        cells: cells of the map along a patch's side; divides patch_size.
        hidden: channels of the convolutions.
        fixed: Gaussians do not move or stretch, for comparison.

    Raises:
        BadInput: cells that do not divide the patch.
    """

    places: Tensor
    start: Tensor

    def __init__(
        self, width: int, rows: int, patch_size: int, channels: int, cells: int, hidden: int, fixed: bool
    ) -> None:
        super().__init__()
        if cells < 1 or patch_size % cells:
            raise BadInput(f"SplatHead: {cells} cells do not divide a patch of {patch_size} pixels; change cells.")
        if hidden < 1 or hidden % min(8, hidden):
            raise BadInput(f"SplatHead: hidden must be a multiple of 8 channels, or fewer than 8, not {hidden}.")
        self.side = rows * cells
        self.shape = None if fixed else nn.Linear(width, 5)
        self.features = nn.Linear(width, channels)
        self.network = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            Residual(hidden),
            Residual(hidden),
            nn.Conv2d(hidden, 3 * (patch_size // cells) ** 2, 3, padding=1),
            nn.PixelShuffle(patch_size // cells),
        )
        if self.shape is not None:
            nn.init.zeros_(self.shape.weight)
            nn.init.zeros_(self.shape.bias)
        device = torch.device("cpu")  # even in a meta-device context: they are no weights
        middles = (torch.arange(rows, device=device) + 0.5) / rows
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        deviation = torch.full((rows * rows,), 2 / 3 / rows, device=device)
        begins = [deviation, deviation, torch.full_like(deviation, 0.5), x.flatten(), y.flatten()]
        self.register_buffer("start", logit(torch.stack(begins, -1)), persistent=False)
        self.register_buffer("places", torch.linspace(-1, 1, self.side, device=device), persistent=False)

    def gaussians(self, x: Tensor) -> Tensor:
        """(B, k, width) -> (B, k, 5) float32: sx, sy, r, center x, center y."""
        moves = x.new_zeros(*x.shape[:2], 5) if self.shape is None else self.shape(x)
        raw = (self.start + moves.float()).sigmoid()
        least = 0.1 * self.start[0, :2].sigmoid()  # a deviation of nearly 0 covers no cell
        return torch.cat([raw[..., :2].maximum(least), 1.98 * raw[..., 2:3] - 0.99, 2 * raw[..., 3:] - 1], dim=-1)

    def weights(self, gaussians: Tensor) -> Tensor:
        """(B, k, 5) -> (B, k, side, side): the value of each Gaussian at each cell."""
        sx, sy, r, x, y = gaussians[..., None, None].unbind(2)
        u = (self.places - x) / sx
        w = (self.places[:, None] - y) / sy
        value = torch.exp(-(u * u - 2 * r * u * w + w * w) / (2 * (1 - r * r)))
        return value * ((u.abs() <= WINDOW) & (w.abs() <= WINDOW))

    def forward(self, x: Tensor, rows: int) -> Tensor:
        """(B, rows * rows, width) -> (B, 3, H, W) in [0, 1]."""
        weights = self.weights(self.gaussians(x)).to(x.dtype)
        summed = torch.einsum("bkhw,bkc->bchw", weights, self.features(x))
        image: Tensor = self.network(summed).sigmoid()
        return image


class Residual(nn.Module):
    """x + two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.GroupNorm(min(8, channels), channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.GroupNorm(min(8, channels), channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SplatDecoder(Decoder):
    """`Decoder` whose image tokens become Gaussians (GPSToken's renderer, without its adaptive regions).

    Args:
        channels, cells, hidden, fixed: see `SplatHead`.
        arguments: arguments of `Decoder`.
    """

    def __init__(
        self, channels: int = 32, cells: int = 4, hidden: int = 64, fixed: bool = False, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        width, size = self.norm_out.normalized_shape[0], self.image_head.patch_size
        self.image_head = SplatHead(width, self.rows, size, channels, cells, hidden, fixed)  # type: ignore[assignment]

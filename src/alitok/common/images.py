"""Pictures as bytes and as files: rounding, PNG, titled grids."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.files import atomic_file

Quantization = Literal["truncate", "round"]


def to_uint8(images: Tensor, mode: Quantization = "truncate") -> Tensor:
    """Clamps to [0, 1], multiplies by 255, and truncates (as the published sample sets do) or rounds to uint8.

    Args:
        images: (...) float in [0, 1]; half precision is cast to float32 first.
        mode: the two differ by half a gray level on average, which changes FID: record the mode.

    Raises:
        BadInput: the mode is unknown, or the images are integers or contain NaN or infinity.
    """
    if mode not in ("truncate", "round"):
        raise BadInput(f"Quantization {mode!r} is unknown: choose 'truncate' or 'round'.")
    if not images.is_floating_point():
        raise BadInput(f"Images are {images.dtype}, expected float in [0, 1]: give them as the model made them.")
    if not torch.isfinite(images).all():
        raise BadInput("The images hold NaN or infinity: the model that made them is broken or overflows.")
    scaled = images.float().clamp(0, 1) * 255
    return (scaled.round() if mode == "round" else scaled).to(torch.uint8)


TITLED_SIZE = 128


def save_grid(images: Tensor, path: str | Path, columns: int = 8, titles: list[str] | None = None) -> None:
    """Writes (B, 3, H, W) in [0, 1], or uint8, as one PNG: `columns` pictures a row, titles above the columns.

    With titles, pictures of fewer than 128 pixels are enlarged by a whole factor, so that a word fits above them and
    a screen that enlarges the grid does not blur their pixels.
    """
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    if images.dtype == torch.uint8:
        # without the half, multiplying by 255 again could give the gray level below
        images = (images + 0.5) / 255
    if titles and images.shape[-1] < TITLED_SIZE:
        factor = -(-TITLED_SIZE // images.shape[-1])
        images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    grid = to_pil_image(make_grid(images.float().cpu().clamp(0, 1), nrow=columns, padding=2, pad_value=1.0))
    if titles:
        cell = images.shape[-1] + 2
        font = ImageFont.truetype(_font_file(), size=max(9, cell // 8))
        page = Image.new("RGB", (grid.width, grid.height + cell // 4), "white")
        page.paste(grid, (0, cell // 4))
        pen = ImageDraw.Draw(page)
        for column, title in enumerate(titles[:columns]):
            while title and pen.textlength(title, font=font) > cell:
                title = title[:-1]
            pen.text((2 + column * cell, cell // 16), title, fill="black", font=font)
        grid = page
    with atomic_file(path) as temporary:
        grid.save(temporary, format="PNG")


def _font_file() -> str:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has no accents."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

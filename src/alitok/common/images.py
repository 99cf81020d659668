"""Pictures as files: grids of them, titled."""

from pathlib import Path

import torch
from torch import Tensor

from alitok.common.files import atomic_file

TITLED_SIZE = 64


def save_grid(images: Tensor, path: str | Path, columns: int = 8, titles: list[str] | None = None) -> None:
    """Writes (B, 3, H, W) in [0, 1], or uint8, as one PNG, `columns` pictures a row, each column under its title.

    Under titles, pictures of fewer than 64 pixels are enlarged by a whole factor, so that a word finds room.
    """
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    if images.dtype == torch.uint8:
        # the half keeps a grey level from falling to the one below when it is multiplied by 255 again
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
    """DejaVu Sans as matplotlib brings it: Pillow's own font has no accents."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

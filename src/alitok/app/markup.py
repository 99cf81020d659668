"""Pictures as HTML: PNGs inside the page, with a grid of tokens over them. `page.js` reacts to the pointer."""

import base64
import io
import json
from collections.abc import Collection, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from alitok.app.drawing import Token
from alitok.app.layout import Layout
from alitok.common.images import Quantization, to_uint8


def data_uri(image: Tensor, rounding: Quantization) -> str:
    """(3, H, W) in [0, 1] as the data URL of a PNG. Choose the rounding of the command that writes such files."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image, rounding).permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(image: Tensor, title: str, rounding: Quantization = "round", detail: str = "") -> str:
    """A picture under its title."""
    caption = f"<figcaption><b>{escape(title)}</b> <span>{escape(detail)}</span></figcaption>"
    return f'<figure><img alt="{escape(title)}" src="{data_uri(image, rounding)}">{caption}</figure>'


def token_figure(
    image: Tensor,
    layout: Layout,
    tokens: Sequence[Token],
    title: str,
    rounding: Quantization = "round",
    detail: str = "",
    chosen: Collection[int] = (),
    picture: int = 0,
    count: int = 0,
) -> str:
    """A picture with its tokens: the prefix as cells above it, the others as a grid on it.

    Args:
        tokens: its tokens; empty while the picture forms.
        chosen: positions of tokens that the user chose.
        picture: number of the picture on the page, sent with a choice.
        count: number of known tokens while the picture forms.
    """
    cells = [_cell(place, token, place in chosen) for place, token in enumerate(tokens)]
    columns = layout.rows or 16
    empty = [f"<i{' class=known' if place < count else ''}></i>" for place in range(layout.prefix)]
    front = "".join(cells[: layout.prefix] or empty)
    front = f'<div class="prefix" style="--columns:{columns}">{front}</div>' if front else ""
    grid = "".join(cells[layout.prefix :])
    grid = f'<div class="grid" style="--columns:{layout.rows}">{grid}</div>' if grid else ""
    caption = f"<figcaption><b>{escape(title)}</b> <span>{escape(detail)}</span></figcaption>"
    shown = f'<img alt="{escape(title)}" src="{data_uri(image, rounding)}">'
    return f'<figure data-picture="{picture}">{front}<div class="over">{shown}{grid}</div>{caption}</figure>'


def _cell(place: int, token: Token, chosen: bool) -> str:
    data = {"ids": token.ids, "p": token.probability, "others": token.others}
    name = " ".join(["token", *(["chosen"] if chosen else [])])
    stop = -1 if place else 0  # one stop for the Tab key in each picture; the arrow keys move it
    word = f"token {place}, id {'.'.join(map(str, token.ids))}"
    return (
        f'<button type="button" class="{name}" data-place="{place}" aria-label="{word}" tabindex="{stop}"'
        f' data-token="{escape(json.dumps(data, separators=(",", ":")))}"></button>'
    )


def progress(done: int, total: int) -> str:
    """A progress bar for a picture that forms."""
    bar = f'<progress value="{done}" max="{total}" aria-label="tokens drawn"></progress>'
    return f'{bar}<p class="soft">{done} of {total} tokens</p>'


def message(sentence: str) -> str:
    """One sentence for the user."""
    return f'<p class="message" role="alert">{escape(sentence)}</p>'


ABOUT = '<div class="about" aria-live="polite"><p class="soft">Point at a token to see what it is.</p></div>'

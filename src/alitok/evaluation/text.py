"""How much small text survives a tokenizer: draws words, reconstructs them and reads them without a network.

Follows TokBench (https://github.com/wjf5203/TokBench), which reads real words with a network.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.common.random import stream
from alitok.models.tokenizer import Tokenizer

COLUMNS, ROWS = 5, 7  # size of a glyph
LEAST_LETTERS, MOST_LETTERS = 3, 8
LARGEST = 4  # widest stroke, in pixels
LEAST_CONTRAST = 0.4  # smallest difference in luminance between letters and ground
LUMINANCE = (0.299, 0.587, 0.114)

# Seven rows of five pixels each, the left one in the highest bit.
FONT = {
    "A": "0E 11 11 1F 11 11 11",
    "B": "1E 11 11 1E 11 11 1E",
    "C": "0E 11 10 10 10 11 0E",
    "D": "1E 11 11 11 11 11 1E",
    "E": "1F 10 10 1E 10 10 1F",
    "F": "1F 10 10 1E 10 10 10",
    "G": "0E 11 10 17 11 11 0F",
    "H": "11 11 11 1F 11 11 11",
    "I": "0E 04 04 04 04 04 0E",
    "J": "07 02 02 02 02 12 0C",
    "K": "11 12 14 18 14 12 11",
    "L": "10 10 10 10 10 10 1F",
    "M": "11 1B 15 15 11 11 11",
    "N": "11 19 15 13 11 11 11",
    "O": "0E 11 11 11 11 11 0E",
    "P": "1E 11 11 1E 10 10 10",
    "Q": "0E 11 11 11 15 12 0D",
    "R": "1E 11 11 1E 14 12 11",
    "S": "0F 10 10 0E 01 01 1E",
    "T": "1F 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0E",
    "V": "11 11 11 11 11 0A 04",
    "W": "11 11 11 15 15 1B 11",
    "X": "11 11 0A 04 0A 11 11",
    "Y": "11 11 0A 04 04 04 04",
    "Z": "1F 01 02 04 08 10 1F",
    "2": "0E 11 01 06 08 10 1F",
    "3": "1F 02 04 02 01 11 0E",
    "4": "02 06 0A 12 1F 02 02",
    "5": "1F 10 1E 01 01 11 0E",
    "6": "06 08 10 1E 11 11 0E",
    "7": "1F 01 02 04 08 08 08",
    "8": "0E 11 11 0E 11 11 0E",
    "9": "0E 11 11 0F 01 02 0C",
}
ALPHABET = "".join(FONT)


@cache
def glyphs() -> Tensor:
    """(letters, 7, 5) float32 of 0 and 1, in the order of `ALPHABET`."""
    rows = torch.tensor([[int(row, 16) for row in text.split()] for text in FONT.values()])
    return ((rows[..., None] >> torch.arange(COLUMNS - 1, -1, -1)) & 1).float()


@dataclass(frozen=True)
class Word:
    """A word in a picture: letters as indices into `ALPHABET`, corner, stroke width in pixels, whether it is dark."""

    letters: tuple[int, ...]
    top: int
    left: int
    stroke: int
    dark: bool


def strokes(image_size: int) -> list[int]:
    """Stroke widths in pixels at which a word of three letters fits into a picture.

    Raises:
        BadInput: there is none.
    """
    found = [stroke for stroke in range(1, LARGEST + 1) if LEAST_LETTERS * (COLUMNS + 1) * stroke <= image_size]
    if not found:
        raise BadInput(f"A picture of {image_size} pixels has no room for {LEAST_LETTERS} letters: take a larger one.")
    return found


def draw_word(image_size: int, stroke: int, seed: int, index: int) -> tuple[Tensor, Word]:
    """Draw one word on a color gradient.

    Returns:
        (3, size, size) float32 in [0, 1] in steps of 1/255, and the word.
    """
    noise = stream(seed, "word", stroke, index)

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=noise))

    most = min(MOST_LETTERS, image_size // ((COLUMNS + 1) * stroke))
    letters = tuple(below(len(ALPHABET)) for _ in range(LEAST_LETTERS + below(most - LEAST_LETTERS + 1)))
    width, height = (COLUMNS + 1) * stroke * len(letters) - stroke, ROWS * stroke
    top, left = below(image_size - height + 1), below(image_size - width + 1)
    dark, colors = bool(below(2)), torch.rand(3, 3, generator=noise)  # the letters' color, then two of the ground
    reach = (1 - LEAST_CONTRAST) / 2  # largest distance of dark colors from black and of light ones from white
    ink, ground = (colors[0] * reach, 1 - colors[1:] * reach) if dark else (1 - colors[0] * reach, colors[1:] * reach)
    along = torch.linspace(0, 1, image_size)
    slope = (along[:, None] + along) / 2 if below(2) else (along[:, None] + along.flip(0)) / 2
    picture = ground[0][:, None, None] * (1 - slope) + ground[1][:, None, None] * slope
    shapes = glyphs()
    for place, letter in enumerate(letters):
        shape = shapes[letter].repeat_interleave(stroke, 0).repeat_interleave(stroke, 1)
        x = left + place * (COLUMNS + 1) * stroke
        cell = picture[:, top : top + height, x : x + COLUMNS * stroke]
        cell.copy_(torch.where(shape > 0, ink[:, None, None], cell))
    return to_uint8(picture, "round") / 255, Word(letters, top, left, stroke, dark)


def read_word(picture: Tensor, word: Word) -> tuple[int, ...]:
    """The letters in a word's cells: those whose shapes correlate most with the luminance there.

    Args:
        picture: (3, H, W) in [0, 1].
    """
    gray = (picture.float().cpu() * torch.tensor(LUMINANCE)[:, None, None]).sum(0)
    stroke, height, width = word.stroke, ROWS * word.stroke, COLUMNS * word.stroke
    lefts = [word.left + place * (width + stroke) for place in range(len(word.letters))]
    cells = torch.stack([gray[word.top : word.top + height, x : x + width].flatten() for x in lefts])
    shapes = glyphs().repeat_interleave(stroke, 1).repeat_interleave(stroke, 2).flatten(1)
    shapes = shapes - shapes.mean(1, keepdim=True)
    shapes = shapes / shapes.norm(dim=1, keepdim=True)
    # no need to divide by a cell's norm: it scales all its correlations alike
    found = (cells - cells.mean(1, keepdim=True)) @ shapes.T
    return tuple((-found if word.dark else found).argmax(1).tolist())


Fidelity = dict[int, dict[str, float | None]]


@torch.inference_mode()
def text_fidelity(tokenizer: Tokenizer, words: int = 200, seed: int = 0, batch: int = 50) -> tuple[Fidelity, Tensor]:
    """Shares of words and letters that are read correctly in a tokenizer's reconstructions, by letter height.

    A word counts only if it is read correctly in the original picture.

    Args:
        tokenizer: in eval mode.
        words: number of words per height, at least 1.
        batch: pictures reconstructed together.

    Returns:
        {height in pixels: {"words", "letters", "counted"}}, shares None if no word counts, and uint8 pictures
        (heights x 2, 3, H, W): an original and its reconstruction for each height.
    """
    device = next(tokenizer.parameters()).device
    found: Fidelity = {}
    shown: list[Tensor] = []
    for stroke in strokes(tokenizer.image_size):
        right = letters = counted = total = 0
        for start in range(0, words, batch):
            indices = list(range(start, min(start + batch, words)))
            pictures, drawn = zip(*(draw_word(tokenizer.image_size, stroke, seed, i) for i in indices), strict=True)
            originals = torch.stack(pictures)
            outputs = to_uint8(tokenizer.reconstruct(originals.to(device), indices=indices).cpu())
            if start == 0:
                shown += [to_uint8(originals[0], "round"), outputs[0]]
            for original, output, word in zip(originals, outputs, drawn, strict=True):
                if read_word(original, word) != word.letters:
                    continue
                same = sum(a == b for a, b in zip(read_word(output / 255, word), word.letters, strict=True))
                counted, total = counted + 1, total + len(word.letters)
                right, letters = right + (same == len(word.letters)), letters + same
        found[ROWS * stroke] = {
            "words": right / counted if counted else None,
            "letters": letters / total if counted else None,
            "counted": counted,
        }
    return found, torch.stack(shown)

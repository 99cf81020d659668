"""Text fidelity: words that are drawn are read again, and what a tokenizer blurs is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.evaluation.text import (
    ALPHABET,
    LEAST_CONTRAST,
    LUMINANCE,
    MOST_LETTERS,
    draw_word,
    glyphs,
    read_word,
    strokes,
    text_fidelity,
)


class Through(torch.nn.Module):
    """A tokenizer that changes pictures by a function."""

    def __init__(self, image_size: int, change: Any) -> None:
        super().__init__()
        self.image_size, self.change, self.seen = image_size, change, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def reconstruct(self, images: Tensor, seed: int = 0, indices: Any = None) -> Tensor:
        self.seen += list(indices)
        return self.change(images)


def same(images: Tensor) -> Tensor:
    return images


def blur(images: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(images, 8), scale_factor=8.0)


def test_no_two_letters_are_alike() -> None:
    shapes = glyphs().flatten(1)
    assert shapes.shape == (len(ALPHABET), 35)
    assert "0" not in ALPHABET  # O and I are there
    assert "1" not in ALPHABET
    distance = torch.cdist(shapes, shapes, p=1) + 35 * torch.eye(len(shapes))
    assert distance.min() >= 2  # pixels
    rows = ["".join(".#"[int(pixel)] for pixel in row) for row in glyphs()[ALPHABET.index("F")]]
    assert rows == ["#####", "#....", "#....", "####.", "#....", "#....", "#...."]


@pytest.mark.parametrize("size", [32, 64, 256])
def test_what_is_drawn_is_read(size: int) -> None:
    texts = set()
    for stroke in strokes(size):
        for index in range(40):
            picture, word = draw_word(size, stroke, 0, index)
            assert read_word(picture, word) == word.letters
            assert 3 <= len(word.letters) <= MOST_LETTERS
            texts.add(word.letters)
            again, _ = draw_word(size, stroke, 0, index)
            assert torch.equal(picture, again)
    assert len(texts) > 38 * len(strokes(size))


def test_letters_stand_out_and_lie_inside() -> None:
    for index in range(60):
        picture, word = draw_word(64, 2, 3, index)
        gray = (picture * torch.tensor(LUMINANCE)[:, None, None]).sum(0)
        ink = torch.zeros(64, 64, dtype=torch.bool)
        for place, letter in enumerate(word.letters):
            x = word.left + place * 12
            assert x + 10 <= 64
            assert word.top + 14 <= 64
            shape = glyphs()[letter].repeat_interleave(2, 0).repeat_interleave(2, 1) > 0
            ink[word.top : word.top + 14, x : x + 10] = shape
        inside, outside = gray[ink], gray[~ink]
        gap = outside.min() - inside.max() if word.dark else inside.min() - outside.max()
        assert gap >= LEAST_CONTRAST - 2 / 255


def test_strokes_are_those_that_fit() -> None:
    assert strokes(18) == [1]
    assert strokes(32) == [1]
    assert strokes(64) == [1, 2, 3]
    assert strokes(256) == [1, 2, 3, 4]
    with pytest.raises(BadInput, match="17 pixels has no room for 3 letters"):
        strokes(17)


def test_all_words_are_right_if_nothing_changes() -> None:
    tokenizer = Through(64, same)
    found, shown = text_fidelity(tokenizer, words=23, batch=10)
    assert found == {height: {"words": 1.0, "letters": 1.0, "counted": 23} for height in (7, 14, 21)}
    assert tokenizer.seen == [*range(23)] * 3
    assert shown.shape == (6, 3, 64, 64)
    assert torch.equal(shown[0], shown[1])


def test_a_blur_costs_small_letters_most() -> None:
    found, shown = text_fidelity(Through(64, blur), words=60)
    letters = [found[height]["letters"] for height in (7, 14, 21)]
    assert letters[0] < letters[1] < letters[2]
    assert letters[0] < 0.25
    assert all(found[height]["words"] <= found[height]["letters"] for height in found)
    assert not torch.equal(shown[0], shown[1])


def test_letters_count_by_themselves() -> None:
    def first_letter_gone(images: Tensor) -> Tensor:
        changed = images.clone()
        for index, picture in enumerate(changed):
            _, word = draw_word(64, 3, 0, index)
            cell = picture[:, word.top : word.top + 21, word.left : word.left + 15]
            other = glyphs()[(word.letters[0] + 1) % len(ALPHABET)].repeat_interleave(3, 0).repeat_interleave(3, 1)
            cell.copy_((1 - other if word.dark else other).expand(3, -1, -1))
        return changed

    tokenizer = Through(64, first_letter_gone)
    found, _ = text_fidelity(tokenizer, words=20)
    assert found[21] == {"words": 0.0, "letters": 2 / 3, "counted": 20}  # 64 pixels hold three letters of this height


def test_the_verb(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, picture = tmp_path / "text.json", tmp_path / "words.png"
    words = ["text-fidelity", "--tokenizer", str(artifacts / "tokenizer"), "--words", "4", "--device", "cpu"]
    run([*words, "--json", str(record), "--picture", str(picture)])
    first = json.loads(record.read_text())
    assert first["words"] == 4
    assert all(0 <= row["letters"] <= 1 and row["counted"] == 4 for row in first["by_height"].values())
    assert "7 px" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    run([*words, "--json", str(record), "--seed", "1"])
    assert json.loads(record.read_text())["seed"] == 1
    with pytest.raises(BadInput, match="--words must be at least 1, not 0"):
        run(["text-fidelity", "--tokenizer", str(artifacts / "tokenizer"), "--words", "0"])

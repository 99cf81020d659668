"""The demo's page: whole, self-contained, escaped, and calm about what is missing."""

import base64
import io
import math
import os
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.common.errors import BadInput
from alitok.reports.charts import chart, duration, number, svg
from alitok.reports.page import write_report

ODD_NAME = 'étoile <b>&"noire"'
VOID = {"meta", "link", "img", "input"}


def content(**changes: Any) -> dict[str, Any]:
    """A small demo: 3 pictures redrawn, 2 classes of 2 samples, one picture forming in 3 frames."""
    random = torch.Generator().manual_seed(0)

    def pictures(count: int) -> torch.Tensor:
        return torch.rand(count, 3, 16, 16, generator=random)

    return {
        "originals": pictures(3),
        "stage1": pictures(3),
        "stage2": pictures(3),
        "samples": {ODD_NAME: pictures(2), "ring": pictures(2)},
        "taken": {ODD_NAME: [ODD_NAME, "ring"], "ring": ["ring", "ring", "of a picture that is not shown"]},
        "forming": [(ODD_NAME, [1, 2, 12], pictures(3))],
        "curves": {
            "Stage <1>": {
                "train/loss": [(1, 0.5), (2, math.nan), (100, 0.004)],
                "val/loss": [(100, 0.01)],
                "val/codebook_usage": [(50, 1.0), (100, 1.0)],
                "train/lr": [(1, 0.0), (100, 1e-3)],
            }
        },
        "numbers": {"psnr_stage1": 24.04, "psnr_stage2": None, "class_agreement": 0.95, "fid": 3.14159},
        "seconds": {"stage <1>": 61.0, "sampling": 4.25},
        "facts": {"machine": "2 cores & 4 GB"},
        "next_steps": [("Draw <more>.", 'alitok sample --classes "a&b"')],
        **changes,
    }


class Page(HTMLParser):
    """What a reader's program finds: addresses, pictures by alternative text, text; fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: dict[str, str] = {}
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self.addresses.extend(value or "" for key, value in attrs if key in ("src", "href", "srcset", "action"))
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "img" and found["src"] != "data:,":
            assert found["alt"] not in self.pictures
            self.pictures[found["alt"] or ""] = found["src"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write(folder: Path, **changes: Any) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(path, **content(**changes))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def pixels(address: str) -> np.ndarray:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))


def test_page_holds_every_picture_exactly(tmp_path: Path) -> None:
    given = content()
    _, page = write(tmp_path)
    expected = {f"original {i + 1}": image for i, image in enumerate(given["originals"])}
    for stage in ("stage1", "stage2"):
        name = f"{stage[:-1]} {stage[-1]}"
        expected |= {f"picture {i + 1} redrawn by {name}": image for i, image in enumerate(given[stage])}
    for name, images in given["samples"].items():
        expected |= {f"generated {name}, number {i + 1}": image for i, image in enumerate(images)}
    for name, counts, frames in given["forming"]:
        expected |= {
            f"{name} from the first {count} token{'s' if count > 1 else ''}": image
            for count, image in zip(counts, frames, strict=True)
        }
    errors = {name for name in page.pictures if name.startswith("error of")}
    charts = {name for name, address in page.pictures.items() if address.startswith("data:image/svg+xml")}
    assert set(page.pictures) - errors - charts == set(expected)
    assert len(errors) == 6
    for name, image in expected.items():
        assert np.array_equal(pixels(page.pictures[name]), (image * 255).round().byte().permute(1, 2, 0).numpy())


def test_errors_are_mean_differences_times_four(tmp_path: Path) -> None:
    black, gray = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    text, page = write(tmp_path, originals=black, stage1=gray, stage2=black)
    assert (pixels(page.pictures["error of stage 1 in picture 1"]) == 102).all()
    assert (pixels(page.pictures["error of stage 2 in picture 1"]) == 0).all()
    assert "20.0\xa0dB" in text


def test_under_each_sample_stands_what_it_is_taken_for(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    assert text.count('<figcaption class="other">ring</figcaption>') == 1
    assert text.count("<figcaption>ring</figcaption>") == 2
    assert text.count("<figcaption>&eacute;") + text.count("<figcaption>étoile") == 1
    assert "not shown" not in page.text


def test_text_is_escaped(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    assert ODD_NAME in page.text
    assert "<b>&" not in text
    assert f"generated {ODD_NAME}, number 1" in page.pictures
    for words in ("Stage <1>", "stage <1>", "2 cores & 4 GB", "Draw <more>.", 'alitok sample --classes "a&b"'):
        assert words in page.text


def test_numbers_have_units_meanings_and_gaps(tmp_path: Path) -> None:
    numbers = {**content()["numbers"], "seconds": {"stage 1": 61.0}, "peak_memory_bytes": 1_500_000_000, "odd_<key>": 7}
    text, page = write(tmp_path, numbers=numbers)
    for words in ("24.0\xa0dB", "95.0\xa0%", "3.14", "1.50\xa0GB", "odd_<key>", "not measured"):
        assert words in page.text
    assert "cannot be compared with published numbers" in page.text
    assert "None" not in page.text
    assert text.count("not measured") == 1
    assert "1\xa0min 1\xa0s" in page.text
    assert "1\xa0min 5\xa0s" in page.text  # the total


def test_parts_without_content_are_left_out(tmp_path: Path) -> None:
    none = torch.zeros(0, 3, 16, 16)
    text, page = write(
        tmp_path,
        originals=none,
        stage1=none,
        stage2=none,
        samples={},
        taken={},
        forming=[],
        curves={},
        numbers={},
        seconds={},
        facts={},
        next_steps=[],
    )
    assert "section" not in page.tags
    assert page.pictures == {}
    assert "$" not in text


@pytest.mark.parametrize("stage", [{}, {"train/loss": []}, {"train/loss": [(1, math.nan), (2, math.inf)]}])
def test_stage_without_points_is_left_out(tmp_path: Path, stage: dict[str, Any]) -> None:
    _, page = write(tmp_path, curves={"empty stage": stage})
    assert "empty stage" not in page.text
    assert page.text.count("How it learned") == 0


def test_curves_share_a_chart_and_fold_minor_ones(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    charts = [name for name in page.pictures if name.startswith("Stage <1>: ")]
    assert len(charts) == 3  # loss of both splits, usage, learning rate
    assert "Stage <1>: Loss, train ends at 0.004, val ends at 0.01" in charts
    assert page.tags.count("details") == 1
    assert "nan" not in text[text.index('id="curves"') : text.index("</main>")]


def test_broken_page_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = torch.full((3, 3, 16, 16), math.nan)
    with pytest.raises(BadInput, match="NaN"):
        write_report(path, **content(stage2=broken))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_interrupted_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_report(path, **content())
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("unit", "points", "log"),
    [
        ("", [(1, 0.5), (100, 0.001)], True),
        ("", [(1, 0.5), (100, 0.4)], False),
        ("", [(1, 0.0), (100, 1.0)], False),
        ("", [(1, -3.0), (100, 40.0)], False),
        ("", [(1, 1e-12), (100, 1e6)], True),
        ("%", [(1, 1.0), (100, 1.0)], False),
        ("%", [(1, 0.0)], False),
        ("dB", [(0, 20.0)], False),
    ],
)
def test_chart_takes_any_curve(unit: str, points: list[tuple[int, float]], log: bool) -> None:
    made = chart("stage & 1", "A <title>", unit, {"val": points}, may_be_log=True, colors={"val": ("#123456", True)})
    assert ("log scale" in made["units"]) == log
    end = {"name": "val", "value": number(points[-1][1], unit), "color": "#123456", "dashed": True}
    assert made["ends"] == [end]
    drawing = base64.b64decode(made["image"]["src"].partition(",")[2])
    figure = ElementTree.fromstring(drawing)
    texts = [label.text or "" for label in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert "step" in texts
    assert b"#123456" in drawing
    if unit == "%":
        shares = [float(text.split()[0]) for text in texts if "%" in text]
        assert 0 <= min(shares) <= max(shares) <= 100


def test_the_same_curves_give_the_same_file_and_long_ones_are_thinned() -> None:
    long = {"train": [(step, float(step)) for step in range(50_000)]}
    first = svg("", long, False, {"train": ("#123456", False)})
    assert first == svg("", long, False, {"train": ("#123456", False)})
    assert len(first) < 30_000


def test_duration_as_text() -> None:
    assert [duration(seconds) for seconds in (1.25, 42.0, 61.0, 3725.0)] == [
        "1.2\xa0s",
        "42\xa0s",
        "1\xa0min 1\xa0s",
        "1\xa0h 2\xa0min",
    ]


def test_number_as_text() -> None:
    assert number(0.4184, "%") == "41.8\xa0%"
    assert number(12_345, "") == "12,345"
    assert number(12_345.6, "") == "12,346"
    assert number(math.inf, "") == "inf"
    assert number("a<b", "") == "a<b"

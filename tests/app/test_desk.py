"""What the page shows: HTML of pictures, sentences if there are none, progress."""

import copy
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image

from alitok.app.desk import MOST_PICTURES, Desk
from alitok.app.drawing import Token
from alitok.app.layout import Layout
from alitok.app.markup import data_uri, figure, progress, token_figure
from alitok.app.opened import Opened
from alitok.app.settings import Settings, first_settings, read_query
from alitok.common.errors import BadInput


@pytest.fixture
def desk(opened: Opened) -> Desk:
    return Desk(opened)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def tokens(html: str) -> list[dict[str, object]]:
    return [json.loads(unescape(text)) for text in re.findall(r'data-token="([^"]*)"', html)]


def sources(html: str) -> list[str]:
    return re.findall(r'src="([^"]*)"', html)


def test_a_picture_forms_and_then_has_its_tokens(desk: Desk, opened: Opened) -> None:
    *forming, last = desk.drawn(first_settings(opened))
    assert all("<progress" in html and not tokens(html) for html in forming)
    assert [html.count("class=known") for html in forming] == [min(place, 5) for place in range(1, 21)]  # of the prefix
    assert len(tokens(last)) == 21
    assert "<progress" not in last
    assert 'data-fixed=""' in last
    chosen = list(desk.drawn(replace(first_settings(opened), tokens=((4, (1,)),))))[-1]
    assert tokens(chosen)[4]["ids"] == [1]
    assert chosen.count('class="token chosen"') == 1


def test_the_painter_stays_until_the_settings_change(desk: Desk, opened: Opened) -> None:
    settings = first_settings(opened)
    list(desk.drawn(settings))
    painter = desk.painter
    list(desk.drawn(replace(settings, tokens=((4, (1,)),), label="star")))
    assert desk.painter is painter
    list(desk.drawn(replace(settings, seed=6)))
    assert desk.painter is not painter


def test_a_tokenizer_of_another_generator(desk: Desk, opened: Opened) -> None:
    with pytest.raises(BadInput, match="does not decode the tokens of"):
        list(desk.drawn(replace(first_settings(opened), tokenizer=list(opened.tokenizers)[1])))


def test_reconstructions_and_a_file_that_is_no_picture(desk: Desk, opened: Opened, red: Path) -> None:
    broken = red.with_name("<b>.png")
    broken.write_bytes(b"no picture")
    settings = Settings("reconstruct", "", next(iter(opened.tokenizers)))
    told: list[tuple[int, int, str]] = []
    html, command = desk.rebuilt([red, broken], settings, {}, lambda *step: told.append(step))
    assert told == [(0, 2, "red.png"), (1, 2, "<b>.png")]
    assert len(sources(html)) == 3
    assert "PSNR" in html
    assert "Cannot read the image &lt;b&gt;.png: its format is not known; replace or remove it." in html
    assert "<b>.png" not in html
    assert "red.png" in command
    assert "<b>.png" not in command  # the verb would refuse all for one
    assert desk.rebuilt([broken, red], settings, {})[1] == command
    changed, _ = desk.rebuilt([red], settings, {0: {6: (2,)}})
    assert tokens(changed)[6]["ids"] == [2]
    assert "what the replaced tokens change" in changed
    many, _ = desk.rebuilt([red] * (MOST_PICTURES + 1), settings, {})
    assert f"Only the first {MOST_PICTURES} of {MOST_PICTURES + 1} pictures" in many
    assert desk.rebuilt([], settings, {}) == ("", "")


@pytest.mark.parametrize("ids", [("abc",), ("-1",), (5, 0), ("",), (24,), (-1,), (None,), ()])
def test_a_wrong_token_leaves_the_good_ones(desk: Desk, opened: Opened, ids: tuple[object, ...]) -> None:
    name = next(iter(opened.tokenizers))
    good = desk.with_replaced(name, {}, 0, 6, (2,))
    assert good == {0: {6: (2,)}}
    with pytest.raises(BadInput, match=r"is no token: give an id of 0 to 23"):
        desk.with_replaced(name, good, 0, 7, ids)  # type: ignore[arg-type]
    assert good == {0: {6: (2,)}}
    assert desk.with_replaced(name, good, 1, 0, (3,)) == {0: {6: (2,)}, 1: {0: (3,)}}


def test_first_tokens_that_the_verb_refuses_have_no_command(desk: Desk, opened: Opened, red: Path) -> None:
    settings = Settings("reconstruct", "", next(iter(opened.tokenizers)), keep=4)
    html, command = desk.rebuilt([red], settings, {})
    assert command == ""
    assert "first tokens only" in html


def test_comparisons(desk: Desk, opened: Opened, red: Path) -> None:
    (name,) = desk.pair_names()
    html = desk.compared_generators([name], "star", 5, None)
    settings = replace(first_settings(opened), label="star")
    assert sources(html) == sources(list(desk.drawn(settings))[-1])  # the card's guidance and the same seed
    assert sources(desk.compared_generators([name], "star", 5, 0.0)) != sources(html)
    assert "Choose a generator" in desk.compared_generators([], "star", 5, None)
    with pytest.raises(BadInput, match="has no class 'moon'"):
        desk.compared_generators([name], "moon", 5, None)
    with pytest.raises(BadInput, match="x is not open here"):
        desk.compared_generators(["x"], "star", 5, None)
    through = desk.compared_tokenizers(list(opened.tokenizers), red)
    assert len(sources(through)) == 3
    assert through.count("PSNR") == 2
    with pytest.raises(BadInput, match="Tokenizer x is not open here"):
        desk.compared_tokenizers(["x"], red)


@pytest.fixture
def two(opened: Opened) -> Opened:
    """The generator, and the same one with a moon in place of the star, under another name."""
    (generator, tokenizer), *_ = opened.pairs
    network = opened.generators[generator]
    other = copy.copy(network)
    names = ["moon" if name == "star" else name for name in opened.labels(generator)]
    vars(other)["card"] = {**network.card, "class_names": names}
    generators = {"other": other, generator: network}
    return Opened(generators, opened.tokenizers, [("other", tokenizer), (generator, tokenizer)], opened.device)


def test_a_generator_without_the_class_leaves_the_others(two: Opened) -> None:
    desk = Desk(two)
    without, having = desk.pair_names()
    html = desk.compared_generators([without, having], "star", 5, None)
    assert sources(html) == sources(desk.compared_generators([having], "star", 5, None))
    assert html.startswith('<p class="message" role="alert">other has no class &#x27;star&#x27;')
    assert html.count('class="message"') == 1
    assert len(sources(desk.compared_generators([without, having], "circle", 5, None))) == 2
    with pytest.raises(BadInput, match="other has no class 'star'"):
        desk.compared_generators([without], "star", 5, None)


@pytest.mark.parametrize("label", ["star", "moon", "circle"])
def test_the_class_of_any_generator_comes_back_from_the_address(two: Opened, label: str) -> None:
    desk = Desk(two)
    settings = desk.comparison(desk.pair_names(), label, 9, None, [])
    assert settings.generator == ("other" if label != "star" else two.pairs[1][0])
    assert read_query(settings.query(), two) == (settings, [])


def test_a_comparison_comes_back_from_the_address(desk: Desk, opened: Opened) -> None:
    stranger = list(opened.tokenizers)[1]
    settings = desk.comparison(desk.pair_names(), "star", 9, None, [stranger])
    assert settings.models == (*desk.pair_names(), stranger)
    assert read_query(settings.query(), opened) == (settings, [])
    alone = Desk(Opened({}, opened.tokenizers, [], opened.device))
    assert alone.comparison([], "", 0, None, [stranger]).models == (stranger,)


def test_names_from_elsewhere_are_no_html() -> None:
    html = figure(torch.zeros(3, 4, 4), '<script>"&', detail="<i>")
    assert "<script>" not in html
    assert "<i>" not in html
    assert '"&"' not in html
    assert "&lt;script&gt;&quot;&amp;" in html


def test_a_broken_model_is_named() -> None:
    with pytest.raises(BadInput, match="NaN or infinity"):
        data_uri(torch.full((3, 4, 4), torch.nan), "round")


def test_each_picture_is_one_stop_of_the_tab_key() -> None:
    cells = [Token((place,)) for place in range(6)]
    html = token_figure(torch.zeros(3, 4, 4), Layout(2, 2), cells, "x")
    assert re.findall(r'data-place="(\d)".*? tabindex="(-?\d)"', html) == [
        ("0", "0"),
        *((str(place), "-1") for place in range(1, 6)),
    ]


def test_the_progress_bar_says_what_it_counts() -> None:
    assert '<progress value="3" max="9" aria-label="tokens drawn">' in progress(3, 9)


def test_tokens_without_a_place_stand_in_front() -> None:
    html = token_figure(torch.zeros(3, 4, 4), Layout(2, 0), [], "x")
    assert 'class="grid"' not in html

"""Settings <-> address, and the command that gives the same picture."""

import io
import shlex
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alitok.app.drawing import Painter
from alitok.app.markup import data_uri
from alitok.app.opened import OF_CARD, Opened
from alitok.app.settings import Settings, changed_tokens, first_settings, read_query
from alitok.cli import run
from alitok.common.draw import Draw
from alitok.common.errors import BadInput


def test_the_page_opens_as_the_card_recommends(opened: Opened, artifacts: Path) -> None:
    settings = first_settings(opened)
    assert (settings.tab, settings.label, settings.schedule) == ("generate", "circle", "power-cosine")
    assert settings.draw(opened) == Draw(guidance=3.0, power=2.0, seed=5)
    assert read_query("", opened) == (settings, [])
    assert read_query("?__theme=dark", opened) == (settings, [])


def test_every_setting_comes_back_from_the_address(opened: Opened) -> None:
    names = [f"{generator} + {tokenizer}" for generator, tokenizer in opened.pairs]
    settings = replace(
        first_settings(opened),
        label="star",
        guidance=1 / 3,
        power=0.7,
        schedule="softcfg",
        temperature=0.9,
        seed=2**40,
        tokens=((3, (7,)), (12, (4,))),
        models=tuple(names),
    )
    assert read_query("?" + settings.query(), opened) == (settings, [])
    compared = replace(settings, tab="compare", guidance=None, tokens=())
    assert read_query(compared.query(), opened) == (compared, [])
    stranger = list(opened.tokenizers)[1]
    reconstructed, refused = read_query(Settings("reconstruct", "", stranger, keep=4).query(), opened)
    assert not refused
    assert (reconstructed.tab, reconstructed.tokenizer, reconstructed.keep) == ("reconstruct", stranger, 4)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("class=stars", "class 'stars'. There is circle, square, star; did you mean 'star'"),
        ("generator=/etc", "generator '/etc'. There is"),
        ("tokenizer=owner/name", "tokenizer 'owner/name'. There is"),
        ("schedule=os.system", "schedule 'os.system'. There is"),
        ("tab=admin", "tab 'admin'. There is generate"),
        ("model=x", "model 'x'. There is"),
        ("seed=1.5", "seed '1.5'. Give a whole number"),
        ("seed=99999999999999999999999", "A seed is a whole number below 2^53"),
        ("seed=" + "9" * 5000, "Give a whole number"),
        ("guidance=lots", "guidance 'lots'. Give a number"),
        ("guidance=nan", "guidance scale must be 0"),
        ("guidance=-1", "guidance scale must be 0"),
        ("guidance=1e999", "guidance scale must be 0"),
        ("temperature=0", "temperature must be above 0"),
        ("power=-2", "power must be above 0"),
        ("tokens=1", "Write position:id"),
        ("tokens=1:x", "Write position:id"),
        ("tokens=500:1", "There is no token 500: positions are 0 to 20"),
        ("tokens=5:99999", "99999 is no token: give an id of 0 to 23"),
        ("tokens=5:1.2", "1.2 is no token"),
    ],
)
def test_what_an_address_cannot_set_is_as_the_page_opens(opened: Opened, query: str, sentence: str) -> None:
    settings, (refused,) = read_query(query + "&power=3", opened) if "power" not in query else read_query(query, opened)
    assert sentence in refused
    assert len(refused) < 400
    assert replace(settings, power=2.0) == first_settings(opened)
    assert settings.power == (2.0 if "power" in query else 3.0)  # the rest is taken


@pytest.mark.parametrize(("keep", "taken"), [("1000", 21), ("-5", 1), ("0", 1), ("21", 21), ("4", 4), ("x", None)])
def test_the_nearest_number_of_tokens(opened: Opened, keep: str, taken: int | None) -> None:
    settings, refused = read_query(f"tab=reconstruct&keep={keep}", opened)
    assert settings.keep == taken
    assert bool(refused) == (keep != str(taken))


@pytest.mark.parametrize("query", ["guidance=50", "temperature=1e-30", "power=0.000001", "guidance=1e300"])
def test_an_address_takes_the_numbers_that_sampling_takes(opened: Opened, query: str) -> None:
    settings, refused = read_query(query, opened)
    assert not refused
    key, value = query.split("=")
    assert getattr(settings, key) == float(value)
    assert f"--{key}" in settings.sample_command(opened)
    tokens = Painter(
        opened.generators[settings.generator], opened.tokenizers[settings.tokenizer], settings.draw(opened)
    ).picture(1)
    assert len(tokens.tokens) == 21
    assert all(token.probability is None or 0 <= token.probability <= 1 for token in tokens.tokens)


def test_seeds_that_a_browser_would_round(opened: Opened) -> None:
    settings = replace(first_settings(opened), seed=2**53)
    with pytest.raises(BadInput, match="A seed is a whole number below 2"):
        settings.draw(opened)
    assert replace(settings, seed=2**53 - 1).draw(opened).seed == 2**53 - 1
    with with_card(opened, seed=2**60) as changed:
        assert first_settings(changed).seed == 0


@contextmanager
def with_card(opened: Opened, **values: Any) -> Iterator[Opened]:
    """The same models while the first generator's card has other values."""
    network = opened.generators[opened.pairs[0][0]]
    card = network.card
    try:
        vars(network)["card"] = {**card, **values}
        yield opened
    finally:
        vars(network)["card"] = card


def test_classes_that_share_a_name_can_both_be_drawn(opened: Opened) -> None:
    with with_card(opened, class_names=["crane", "star", "crane"]):
        assert opened.labels(opened.pairs[0][0]) == ["crane (0)", "star", "crane (2)"]
        for label, number in (("crane (0)", 0), ("star", 1), ("crane (2)", 2)):
            settings, refused = read_query(replace(first_settings(opened), label=label).query(), opened)
            assert not refused
            assert settings.class_number(opened) == number
        assert "crane" in read_query("class=crane", opened)[1][0]
    with with_card(opened, class_names=["a", "a", "a (0)"]):
        assert opened.labels(opened.pairs[0][0]) == ["0: a", "1: a", "2: a (0)"]


def test_a_class_block_of_the_card_is_its_own_rule(opened: Opened) -> None:
    block = {"class_path": "alitok.sampling.guidance.Constant", "init_args": {"scale": 2.0}}
    with with_card(opened, schedule=block):
        assert opened.schedules(opened.pairs[0][0])[-1] == OF_CARD
        settings = first_settings(opened)
        assert settings.schedule == OF_CARD
        assert settings.draw(opened).schedule == block
        assert read_query(settings.query(), opened) == (settings, [])


def test_a_tokenizer_that_does_not_decode_for_the_generator(opened: Opened) -> None:
    settings, (refused,) = read_query(Settings("generate", "", list(opened.tokenizers)[1]).query(), opened)
    assert "The address has tokenizer" in refused
    assert settings.tokenizer == opened.pairs[0][1]


def test_without_a_generator_the_page_reconstructs(opened: Opened) -> None:
    alone = Opened({}, opened.tokenizers, [], opened.device)
    assert first_settings(alone).tab == "reconstruct"
    settings, refused = read_query("tab=compare&seed=3&class=star", alone)
    assert (settings.tab, refused) == ("compare", [])
    settings, refused = read_query("tab=generate", alone)
    assert settings.tab == "reconstruct"
    assert "The address has tab 'generate'" in refused[0]


@pytest.mark.parametrize("label", ["star", "square"])
def test_the_command_draws_the_same_picture(
    opened: Opened, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(first_settings(opened), label=label, guidance=1.25, temperature=0.8, seed=11, schedule="linear")
    painter = Painter(
        opened.generators[settings.generator], opened.tokenizers[settings.tokenizer], settings.draw(opened)
    )
    image = painter.picture(settings.class_number(opened)).image
    encoded = data_uri(image, "truncate").removeprefix("data:image/png;base64,")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(settings.sample_command(opened))
    assert words[0] == "alitok"
    run(words[1:])
    (drawn,) = (tmp_path / "picture").glob("*.png")
    with Image.open(drawn) as theirs, Image.open(io.BytesIO(b64decode(encoded))) as ours:
        # truncation may turn the rounding of another batch's products into a gray level
        assert int(np.abs(np.asarray(theirs).astype(int) - np.asarray(ours)).max()) <= 1


def test_the_card_decides_where_its_schedule_has_no_short_name(opened: Opened) -> None:
    settings = replace(first_settings(opened), schedule=OF_CARD)
    assert "--schedule" not in settings.sample_command(opened)


def test_the_command_of_a_reconstruction(opened: Opened) -> None:
    settings: Any = Settings("reconstruct", "", "a tokenizer", keep=4)
    words = ["alitok", "reconstruct", "--tokenizer", "a tokenizer", "my cat.png", "--keep", "4"]
    assert shlex.split(settings.reconstruct_command(["my cat.png"])) == [*words, "--out", "reconstructed"]


def test_a_choice_takes_back_those_behind_it() -> None:
    tokens = ((2, (7,)), (5, (1,)), (9, (3,)))
    assert changed_tokens(tokens, 5, (8,)) == ((2, (7,)), (5, (8,)))
    assert changed_tokens((), 0, (1,)) == ((0, (1,)),)

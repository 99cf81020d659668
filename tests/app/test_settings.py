"""Settings <-> address, and the command that gives the same picture."""

import io
import shlex
from base64 import b64decode
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
    assert read_query("", opened) == settings
    assert read_query("?__theme=dark", opened) == settings


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
        tokens=((3, (7,)), (12, (4, 5))),
        models=tuple(names),
    )
    assert read_query("?" + settings.query(), opened) == settings
    compared = replace(settings, tab="compare", guidance=None, tokens=())
    assert read_query(compared.query(), opened) == compared
    stranger = list(opened.tokenizers)[1]
    reconstructed = read_query(Settings("reconstruct", "", stranger, keep=4).query(), opened)
    assert (reconstructed.tab, reconstructed.tokenizer, reconstructed.keep) == ("reconstruct", stranger, 4)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("class=stars", "asks for class 'stars'.*star"),
        ("generator=/etc", "asks for generator '/etc'"),
        ("tokenizer=owner/name", "asks for tokenizer 'owner/name'"),
        ("schedule=os.system", "asks for schedule 'os.system'"),
        ("tab=admin", "asks for tab 'admin'"),
        ("model=x", "asks for model 'x'"),
        ("seed=1.5", "seed '1.5', which is no number"),
        ("guidance=lots", "guidance 'lots', which is no number"),
        ("guidance=nan", "guidance scale must be 0"),
        ("temperature=0", "temperature must be above 0"),
        ("tokens=1", "tokens '1'; write position:id"),
        ("tokens=1:x", "write position:id"),
    ],
)
def test_an_address_chooses_among_what_is_open(opened: Opened, query: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read_query(query, opened)


def test_a_tokenizer_that_does_not_decode_for_the_generator(opened: Opened) -> None:
    with pytest.raises(BadInput, match="asks for tokenizer"):
        read_query(Settings("generate", "", list(opened.tokenizers)[1]).query(), opened)


def test_without_a_generator_the_page_reconstructs(opened: Opened) -> None:
    alone = Opened({}, opened.tokenizers, [], opened.device)
    assert first_settings(alone).tab == "reconstruct"
    assert read_query("tab=compare&seed=3&class=star", alone).tab == "compare"


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
        # truncation may turn the rounding of another batch's products into a grey level
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

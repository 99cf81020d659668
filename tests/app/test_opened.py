"""Which artifacts the app opens, and which belong together."""

from pathlib import Path

import pytest
import torch

from alitok.app.opened import OF_CARD, Opened, chosen_paths, open_models
from alitok.common.errors import BadInput

CPU = torch.device("cpu")


def test_without_options_it_is_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"run `alitok demo` first, or give --generator and\s--tokenizer"):
        chosen_paths([], [])
    for name in ("generator", "stage2"):
        (tmp_path / "runs" / "demo" / name / "artifact").mkdir(parents=True)
    assert chosen_paths([], []) == (["runs/demo/generator/artifact"], ["runs/demo/stage2/artifact"])
    (tmp_path / "runs/demo/stage1/artifact").mkdir(parents=True)
    assert chosen_paths([], [])[1] == ["runs/demo/stage2/artifact", "runs/demo/stage1/artifact"]


def test_a_tokenizer_needs_no_generator_but_a_generator_a_tokenizer() -> None:
    assert chosen_paths([], ["a", "b", "a"]) == ([], ["a", "b"])
    with pytest.raises(BadInput, match="give --tokenizer too"):
        chosen_paths(["a"], [])


def test_pairs_are_those_that_fit(opened: Opened, artifacts: Path) -> None:
    generator, tokenizer = str(artifacts / "generator"), str(artifacts / "tokenizer")
    assert opened.pairs == [(generator, tokenizer)]
    assert opened.partners(generator) == [tokenizer]
    assert set(opened.tokenizers) == {tokenizer, str(artifacts / "stranger")}


def test_a_generator_that_no_tokenizer_fits(artifacts: Path) -> None:
    with pytest.raises(BadInput, match=r"No tokenizer fits .*generator. The generator was trained on tokens of"):
        open_models([str(artifacts / "generator")], [str(artifacts / "stranger")], CPU)


def test_a_schedule_of_the_card_that_has_no_short_name(artifacts: Path) -> None:
    names = [str(artifacts / "generator")], [str(artifacts / "tokenizer")]
    opened = open_models(*names, CPU)
    assert OF_CARD not in opened.schedules(names[0][0])
    network = opened.generators[names[0][0]]
    network.card = {**network.card, "schedule": "alitok.sampling.guidance.Constant"}
    assert opened.schedules(names[0][0])[-1] == OF_CARD

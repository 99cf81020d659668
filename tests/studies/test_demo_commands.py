"""The commands that the demo's page shows, and what it says of its steps."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alitok.common.files import experiments_folder
from alitok.studies import demo
from alitok.studies.demo_plan import Plan

OWN = experiments_folder() / "demo"
COMMANDS: dict[str, Callable[[Path], str]] = {
    "app": demo.app_command,
    "sample": lambda out: demo.sample_command(out, "star,heart"),
    "reconstruct": demo.reconstruct_command,
    "fit": lambda out: demo.again_command(out, OWN),
    "compare": demo.compare_command,
}


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("out", ["runs/demo", "my runs/demo", "it's; rm -rf $HOME"])
def test_a_folder_of_any_name_is_one_word_of_each_command(verb: str, out: str) -> None:
    words = shlex.split(COMMANDS[verb](Path(out)))
    plain = shlex.split(COMMANDS[verb](Path("OUT")))
    assert words[:2] == ["alitok", verb]
    assert words == [word.replace("OUT", out) for word in plain]
    assert any(word.startswith("OUT") for word in plain)


def test_the_second_generator_has_the_configuration_of_the_first_one(tmp_path: Path) -> None:
    own = shlex.split(demo.again_command(Path("runs/demo"), OWN))
    assert own[2:4] == ["-c", "experiments/demo/generator.yaml"]  # found in every folder
    other = shlex.split(demo.again_command(Path("runs/demo"), tmp_path / "my configs"))
    assert other[2:4] == ["-c", f"{tmp_path / 'my configs'}/generator.yaml"]
    assert other[4:] == own[4:]


def test_the_steps_of_the_second_generator_are_one_line(tmp_path: Path) -> None:
    config = {"model": {"init_args": {"phases": {"main": {"steps": 7}}}}, "trainer": {"precision": "bf16-mixed"}}
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "config.yaml").write_text(yaml.safe_dump(config))
    assert demo.as_trained(tmp_path) == " --model.phases.main.steps 7 --trainer.precision bf16-mixed"


@pytest.mark.parametrize(
    ("share", "minutes", "words"),
    [
        (1.0, None, "100% of the recipe's"),
        (1.0, 12.0, "100% of the recipe's, for 12 minutes here"),
        (0.51, 12.0, "51% of the recipe's, for 12 minutes here; --minutes 0 and another --out train all of them"),
        (2.0, 30.0, "200% of the recipe's, for 30 minutes here"),
    ],
)
def test_the_page_claims_no_result_of_another_recipe(share: float, minutes: float | None, words: str) -> None:
    said = demo.steps_in_words(Plan(minutes, "32-true", share, {}, {}))
    assert said == words
    assert not re.search(r"\d+ %", said)

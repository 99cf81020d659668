"""What the README says is there, is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from alitok.cli import VERBS, Parser
from alitok.config import compose_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^alitok (.+)$", BLOCKS, re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    import importlib

    verb, *words = shlex.split(command, comments=True)
    assert verb in VERBS
    module = importlib.import_module(f"alitok.commands.{verb.replace('-', '_')}")
    parser = Parser(prog=f"alitok {verb}")
    module.add_arguments(parser)
    if getattr(module, "TAKES_OVERRIDES", False):
        args, overrides = parser.parse_known_args(words)
        if args.config is not None:  # `describe --data` has none
            compose_run([ROOT / file for file in args.config], overrides)
    else:
        parser.parse_args(words)


def test_every_make_target_exists() -> None:
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= TARGETS


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.splitlines()) <= 120
    start = README.split("## Start here")[1].split("## ")[0]
    assert len(re.findall(r"^\| \[[^]]+\.(py|yaml)\]", start, re.MULTILINE)) == 6


def test_the_folders_name_every_room_and_every_file_says_what_it_is() -> None:
    folders = README.split("## Folders")[1].split("## ")[0]
    assert len(re.findall(r"```\n(.*?)```", folders, re.DOTALL)[0].splitlines()) <= 20
    for path in [*(ROOT / "src" / "alitok").iterdir(), *(ROOT / "experiments").iterdir()]:
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"\b{path.name}\b", folders), path
    for path in (ROOT / "src" / "alitok").rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_files_it_points_to_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for target in re.findall(r"`(tests/[^` ]+)`", text.replace("NAME", "fsq")):
        assert (ROOT / target).exists(), target

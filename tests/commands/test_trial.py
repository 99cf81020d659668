"""`alitok trial`: ideas against their base over the same seeds, one table."""

import json
from pathlib import Path

import pytest
from tiny import DEMO, SMALL

from alitok.cli import run
from alitok.commands.trial import BASE, table
from alitok.common.errors import BadInput

STEPS = ["--model.phases.continuous.steps", "2", "--model.phases.main.steps", "3", "--trainer.callbacks.grid", "null"]


@pytest.fixture
def idea(tmp_path: Path) -> Path:
    file = tmp_path / "no-prefix-loss.yaml"
    file.write_text("model: {init_args: {losses: {prefix: null}}}\n")
    return file


def words(out: Path, *more: str) -> list[str]:
    return ["trial", "-c", str(DEMO / "tokenizer-stage1.yaml"), "--out", str(out), *more, *SMALL, *STEPS]


def test_every_run_is_trained_and_measured_at_its_end(
    tmp_path: Path, idea: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trial"
    run(words(out, "--idea", str(idea), "--seeds", "0,1"))
    content = json.loads((out / "trial.json").read_text())
    assert [(row["name"], row["seed"]) for row in content["rows"]] == [
        (BASE, 0),
        ("no-prefix-loss", 0),
        (BASE, 1),
        ("no-prefix-loss", 1),
    ]
    for row in content["rows"]:
        assert row["psnr"] > 0
        assert 0 < row["codebook_usage"] <= 1
    # the same seed draws the same start, and the idea changed what came of it
    assert content["rows"][0]["psnr"] != content["rows"][1]["psnr"]
    text = (out / "trial.md").read_text()
    assert text.startswith("| 2 seeds | base | no-prefix-loss |\n")
    assert (out / "compare.html").is_file()
    capsys.readouterr()

    run(words(out, "--idea", str(idea), "--seeds", "0,1"))
    assert capsys.readouterr().out.count("is finished (5 steps)") == 4
    assert json.loads((out / "trial.json").read_text())["rows"] == content["rows"]


def test_the_table_says_mean_spread_and_distance_to_the_base() -> None:
    rows = [
        {"name": name, "seed": seed, "seconds": 60.0, "psnr": psnr, **more}
        for name, seed, psnr, more in [
            (BASE, 0, 20.0, {}),
            ("a", 0, 19.0, {"extra": 1.0}),
            (BASE, 1, 22.0, {}),
            ("a", 1, 19.5, {}),
        ]
    ]
    head, _, psnr, extra, seconds = table(rows).splitlines()
    assert head == "| 2 seeds | base | a |"
    assert psnr == "| psnr | 21 dB ± 1.414 dB | 19.25 dB ± 0.3536 dB (-1.75 dB) |"
    assert extra.startswith("| extra | — |")
    assert seconds.startswith("| wall time a run |")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--idea", "{idea}", "--idea", "{idea}"], "already; runs are named by their files"),
        (["--idea", "{idea}", "--seeds", "0,x"], "--seeds takes whole numbers"),
        (["--idea", "{nothing}"], "changes nothing of the base's model or data"),
        (["--idea", "{missing}"], "Cannot read configuration"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    tmp_path: Path, idea: Path, more: list[str], said: str
) -> None:
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("define: {}\n")
    names = {"idea": idea, "nothing": nothing, "missing": tmp_path / "missing.yaml"}
    with pytest.raises(BadInput, match=said):
        run(words(tmp_path / "trial", *(word.format(**names) for word in more)))
    assert not (tmp_path / "trial").exists()

"""The league: budget, rows that stay, stale rows, and the page."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import DEMO

from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.reports.differences import BASE
from alitok.studies import judges
from alitok.studies import league as studies
from alitok.studies.league import League, entries_of

SIZES = {
    f"model.tokenizer.{part}.{key}": value
    for part in ("encoder", "decoder")
    for key, value in (("width", 32), ("depth", 1), ("heads", 2))
}
STEPS = {"model.phases.continuous.steps": 1, "model.phases.main.steps": 1, "data.global_batch": 4, "data.count": 8}
REST = {"data.val_count": 4, "trainer.callbacks.grid": None, "trainer.logger": None, "model.warmup_steps": 0}
TOKENIZER = {**SIZES, **STEPS, **REST}
GENERATOR = {"model.generator.width": 32, "model.generator.depth": 1, "model.generator.heads": 2}
GENERATOR |= {"model.phases.main.steps": 2, "data.global_batch": 8, "model.warmup_steps": 0}
GENERATOR |= {"trainer.callbacks.samples": None, "trainer.logger": None}
TEXTS = {"published": "3.71 → 1.84", "predicted": "none stated"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A league of an idea or two each for tokenizers, decoders and generators, on little data."""
    for name, value in (("TRAIN", 24), ("VAL", 8), ("WIDTH", 64), ("DEPTH", 1), ("REFERENCE_PICTURES", 12)):
        monkeypatch.setattr(judges, name, value)
    opened = studies._train_classifier

    def few(*arguments: Any) -> None:
        monkeypatch.setattr("alitok.data.shapes.DEFAULT_COUNTS", {"train": 40, "val": 16})
        opened(*arguments)

    monkeypatch.setattr(studies, "_train_classifier", few)
    monkeypatch.setattr("alitok.data.shapes.DEFAULT_COUNTS", {"train": 40, "val": 16})
    (tmp_path / "l1.yaml").write_text("model: {losses: {mse: null, l1: {class_path: alitok.losses.terms.L1}}}\n")
    (tmp_path / "again.yaml").write_text("model: {phases: {main: {lr: 1.e-4}}}\n")
    (tmp_path / "wide.yaml").write_text("model: {generator: {width: 48}}\n")
    families = {
        "tokenizers": {
            "base": [str(DEMO / "tokenizer-stage1.yaml")],
            "overrides": TOKENIZER,
            "main": "probe_nats_a_picture",
            "lower_is_better": True,
            "shown": ["psnr", "rfid"],
            "ideas": {"l1": {"files": ["l1.yaml"], **TEXTS}},
        },
        "decoders": {
            "tokenizer": [str(DEMO / "tokenizer-stage1.yaml")],
            "tokenizer_overrides": dict(TOKENIZER),  # else YAML would give both one object
            "base": [str(DEMO / "tokenizer-stage2.yaml")],
            "overrides": {key: value for key, value in TOKENIZER.items() if "continuous" not in key},
            "main": "rfid",
            "lower_is_better": True,
            "shown": ["psnr"],
            "ideas": {"l1-decoder": {"files": ["l1.yaml"], **TEXTS}},
        },
        "generators": {
            "tokenizer": [str(DEMO / "tokenizer-stage1.yaml")],
            "tokenizer_overrides": dict(TOKENIZER),
            "base": [str(DEMO / "generator.yaml")],
            "overrides": {key: value for key, value in GENERATOR.items() if key != "model.generator.width"},
            "main": "gfid_2",
            "lower_is_better": True,
            "shown": ["token_nats"],
            "ideas": {
                "wide": {"files": ["wide.yaml"], **TEXTS},
                "again": {"files": ["again.yaml"], "overrides": {"model.start_from": "{base}/artifact"}, **TEXTS},
            },
        },
    }
    content = {"seeds": [0, 1], "classifier_steps": 2, "samples": 6, "probe_steps": 2, "families": families}
    (tmp_path / "league.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / "league.yaml"


def words(file: Path, *more: str) -> list[str]:
    return ["league", "--data", "shapes", "--league", str(file), "--out", str(file.parent / "runs"), *more]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return json.loads((file.parent / "runs" / "league.json").read_text())["rows"]


@pytest.mark.slow
def test_the_whole_league(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(words(file))
    assert "14 runs, 14 to train: about" in capsys.readouterr().out
    rows = rows_of(file)
    assert {(row["family"], row["name"], row["seed"]) for row in rows} == {
        (family, name, seed)
        for family, *ideas in (("tokenizers", "l1"), ("decoders", "l1-decoder"), ("generators", "wide", "again"))
        for name in (BASE, *ideas)
        for seed in (0, 1)
    }
    for row in rows:
        assert row["flops"] > 0
        assert row["seconds"] > 0
        assert row["parameters"] > 0
        assert row["stale"] is False
        assert (
            row[{"tokenizers": "probe_nats_a_picture", "decoders": "rfid", "generators": "gfid_2"}[row["family"]]] > 0
        )
        assert ("probe_nats_a_picture" in row) == (row["family"] == "tokenizers")
    assert len(list((file.parent / "runs").glob("tokenizer-*"))) == 1  # decoders and generators share it
    # a run of another configuration must not find this one's checkpoints
    assert all("-" in folder.name.removeprefix("seed-") for folder in (file.parent / "runs").rglob("seed-*"))
    text = (file.parent / "runs" / "league.md").read_text()
    assert "| l1 | " in text
    assert "| wide | " in text
    assert text.count("1 of 1 ideas measured") == 2
    assert "2 of 2 ideas measured" in text
    assert "3.71 → 1.84" in text
    assert (file.parent / "runs" / "league.png").stat().st_size > 5000


@pytest.mark.slow
def test_rows_stay_until_their_source_changes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"seeds": [0]}))
    run(words(file, "--only", "l1"))
    assert "2 runs, 2 to train" in capsys.readouterr().out
    rows = rows_of(file)
    run(words(file, "--only", "l1"))
    assert "2 runs, 0 to train" in capsys.readouterr().out
    assert rows_of(file) == rows
    text = (file.parent / "runs" / "league.md").read_text()
    assert "1 of 1 ideas measured: 0 better, 0 worse, 1 undecided" in text  # one seed decides nothing

    # the base is what it was
    (file.parent / "l1.yaml").write_text("model: {losses: {mse: null, l1: {class_path: alitok.losses.terms.MSE}}}\n")
    run(words(file, "--only", "l1"))
    out = capsys.readouterr().out
    assert "2 runs, 0 to train" in out
    assert "1 rows are of another configuration or source" in out
    assert [row["name"] for row in rows_of(file) if row["stale"]] == ["l1"]
    text = (file.parent / "runs" / "league.md").read_text()
    assert "| l1 (1 stale) | — | " in text  # not compared
    assert "0 of 1 ideas measured" in text
    run(words(file, "--only", "l1", "--renew"))
    assert "2 runs, 1 to train" in capsys.readouterr().out
    assert not any(row["stale"] for row in rows_of(file))
    assert rows_of(file)[0] == rows[0]
    assert rows_of(file)[1]["psnr"] != rows[1]["psnr"]


@pytest.mark.slow
def test_a_start_after_a_kill_goes_on(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokens of a family of generators are there, a run is finished and has no row, the other one is new."""
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"seeds": [0]}, sort_keys=False))
    run(words(file, "--only", "wide"))
    rows = json.loads((file.parent / "runs" / "league.json").read_text())
    kept = [row for row in rows["rows"] if row["name"] == BASE]
    (file.parent / "runs" / "league.json").write_text(json.dumps(rows | {"rows": kept}))
    capsys.readouterr()
    run(words(file, "--only", "wide"))
    out = capsys.readouterr().out
    assert "2 runs, 1 to train" in out
    assert out.count("is finished") >= 2  # the tokenizer and the run
    assert len(rows_of(file)) == 2
    # another tokenizer is another base: everything of the family is stale, and is trained in folders of its own
    content["families"]["generators"]["tokenizer_overrides"]["model.warmup_steps"] = 1
    file.write_text(yaml.safe_dump(content | {"seeds": [0]}, sort_keys=False))
    run(words(file, "--only", "wide", "--renew"))
    assert "2 runs, 2 to train" in capsys.readouterr().out
    assert not any(row["stale"] for row in rows_of(file))
    assert len(list((file.parent / "runs").glob("tokenizer-*"))) == 2


def test_a_run_that_fails_is_a_row_and_the_next_one_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "l1.yaml").write_text("model: {phases: {main: {lr: 1.e+30}}}\n")
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"seeds": [0]}, sort_keys=False))
    run(words(file, "--only", "l1"))
    assert "note: tokenizers l1, seed 0: " in capsys.readouterr().out
    assert [bool(row.get("failed")) for row in rows_of(file)] == [False, True]
    assert "| l1 (1 failed) | — | " in (file.parent / "runs" / "league.md").read_text()
    run(words(file, "--only", "l1"))
    assert "2 runs, 0 to train" in capsys.readouterr().out
    run(words(file, "--only", "l1", "--renew"))
    assert "2 runs, 1 to train" in capsys.readouterr().out


def test_a_full_disk_ends_the_league(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run has not failed: it is trained when there is room."""

    def full(*_: Any) -> None:
        raise BadInput("Cannot write x.ckpt: No space left on device.") from OSError(errno.ENOSPC, "No space")

    monkeypatch.setattr("alitok.training.launch.run", full)
    with pytest.raises(BadInput, match="No space left"):
        run(words(file, "--only", "l1", "--hours", "1e-12"))
    assert rows_of(file) == []


def test_rows_of_seeds_that_the_list_no_longer_names_can_become_stale(file: Path) -> None:
    entries = entries_of(League.load(file), "shapes", file.parent / "runs")
    own = [entry for entry in entries if entry.family == "tokenizers"]
    rows = [
        {"family": e.family, "name": e.name, "seed": e.seed, "digest": e.digest, "stale": False, "seconds": 1.0}
        | {"flops": 1e9, "wall": 2.0}
        for e in own
    ]
    (file.parent / "runs").mkdir()
    (file.parent / "runs" / "league.json").write_text(json.dumps({"rows": rows}))
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"seeds": [0]}, sort_keys=False))
    run(words(file, "--only", "l1"))
    assert not any(row["stale"] for row in rows_of(file))
    (file.parent / "l1.yaml").write_text("model: {losses: {mse: null, l1: {class_path: alitok.losses.terms.MSE}}}\n")
    run(words(file, "--only", "l1"))
    assert [(row["name"], row["seed"]) for row in rows_of(file) if row["stale"]] == [("l1", 0), ("l1", 1)]


def test_what_does_not_fit_into_the_hours_is_left(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(words(file, "--hours", "1e-12", "--only", "l1"))
    out = capsys.readouterr().out
    assert "4 runs, 4 to train" in out
    assert "note: 3 runs do not fit into the 1e-12 hours" in out  # the first one tells the pace
    assert [row["name"] for row in rows_of(file)] == [BASE]


def test_a_row_depends_on_what_decides_it(file: Path, tmp_path: Path) -> None:
    def digests(out: Path = tmp_path / "a", data: str = "shapes") -> dict[tuple[str, str, int], str]:
        league = League.load(file)
        return {(entry.family, entry.name, entry.seed): entry.digest for entry in entries_of(league, data, out)}

    first = digests()
    assert len(set(first.values())) == 14
    assert digests(tmp_path / "b") == first  # wherever it is
    content = yaml.safe_load(file.read_text())
    content["families"]["generators"]["tokenizer_overrides"]["model.warmup_steps"] = 1
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert {key[0] for key, value in digests().items() if value != first[key]} == {"generators"}
    assert not set(digests(data="other").values()) & set(first.values())
    content["probe_steps"] = 3
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert not set(digests().values()) & set(first.values())
    content["families"]["tokenizers"]["overrides"]["trainer.precision"] = "bf16-mixed"
    before = digests()
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert {key[0] for key, value in digests().items() if value != before[key]} == {"tokenizers"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"famlies": {}}, "has no key 'famlies': it takes"),
        ({"seeds": None}, "league.yaml needs seeds"),
        ({"families": {"tokenizers": {"base": []}}}, "tokenizers needs"),
        ({"seeds": 3}, "seeds is a list of whole numbers, not 3"),
        ({"families": {"tokenizers": {"ideas": ["l1"]}}}, "tokenizers.ideas must be a map of keys"),
        ({"families": {"tokenizers": {"ideas": {"l1": {"files": "l1.yaml"}}}}}, "files are a list, not 'l1.yaml'"),
    ],
)
def test_what_it_refuses(file: Path, change: dict[str, Any], said: str) -> None:
    content = yaml.safe_load(file.read_text()) | change
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(BadInput, match=said):
        run(words(file))


def test_wrong_options(file: Path) -> None:
    (file.parent / "other.json").write_text('{"fid": 3}')
    with pytest.raises(BadInput, match="holds no rows of a league"):
        run(words(file, "--results", str(file.parent / "other")))
    with pytest.raises(BadInput, match="--only nothing: the league has l1, l1-decoder, wide, again"):
        run(words(file, "--only", "nothing"))
    with pytest.raises(BadInput, match="--hours must be above 0, not 0"):
        run(words(file, "--hours", "0"))


def test_the_shipped_league_composes() -> None:
    league = League.load(DEMO.parent / "league" / "league.yaml")
    league = League(**{**vars(league), "seeds": [0]})
    names = {(entry.family, entry.name) for entry in entries_of(league, "shapes", Path("runs/league"))}
    assert {name for _, name in names} >= {idea for family in league.families.values() for idea in family.ideas}

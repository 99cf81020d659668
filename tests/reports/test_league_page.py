"""The league's page."""

from pathlib import Path
from typing import Any

from alitok.reports.differences import BASE
from alitok.reports.league import Family, Idea, write_page
from alitok.studies.league import League


def row(name: str, seed: int, seconds: float | None, **more: Any) -> dict[str, Any]:
    return {"family": "tokenizers", "name": name, "seed": seed, "seconds": seconds, "stale": False, "psnr": 20.0} | more


def test_bases_columns_and_machine_are_named(tmp_path: Path) -> None:
    idea = Idea(files=[], published="p", predicted="q")
    given: dict[str, Any] = {"lower_is_better": False, "ideas": {"a": idea}, "overrides": {}}
    tokenizers = Family(base=["experiments/league/../demo/x.yaml"], main="psnr", shown=["mine"], **given)
    generators = Family(
        base=["experiments/league/y.yaml", "z.yaml"], main="gfid_1.5_decoded", shown=[], tokenizer=["t.yaml"], **given
    )
    write_page(
        {"tokenizers": tokenizers, "generators": generators}, [row(BASE, 0, 60.0)], tmp_path / "league", ["Mine."]
    )
    text = (tmp_path / "league.md").read_text("utf-8")
    assert "Base: `demo/x.yaml`.\n" in text
    assert "Base: `league/y.yaml` + `z.yaml`, on the tokens of `t.yaml`.\n" in text
    assert "Mine.\n" in text
    assert "\n| psnr | of reconstructions" in text
    assert (
        "\n| gfid 1.5 decoded | FID of samples to decoded pictures, so without the tokenizer's part (guidance 1.5) |"
        in text
    )
    assert "| mine |  |" not in text


def test_every_column_of_the_shipped_league_has_a_meaning(tmp_path: Path) -> None:
    league = League.load(Path(__file__).parents[2] / "experiments" / "league" / "league.yaml")
    write_page(league.families, [], tmp_path / "league")
    text = (tmp_path / "league.md").read_text("utf-8")
    for family in league.families.values():
        for key in (family.main, *family.shown):
            assert f"\n| {key.replace('_', ' ')} | " in text


def test_a_row_says_how_long_a_run_took(tmp_path: Path) -> None:
    """The mean of the runs that count: neither a stale nor a failed one."""
    idea = Idea(files=[], published="p", predicted="q")
    family = Family(
        base=[], main="psnr", lower_is_better=False, shown=[], ideas={"a": idea, "b": idea, "c": idea}, overrides={}
    )
    rows = [row(BASE, 0, 60.0), row(BASE, 1, 120.0), row("a", 0, 100.0), row("a", 1, 9000.0, stale=True)]
    rows.append(row("b", 0, None, failed="it diverged", psnr=None))
    write_page({"tokenizers": family}, rows, tmp_path / "league")
    lines = (tmp_path / "league.md").read_text("utf-8").splitlines()
    cells = {words[0]: words for words in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    place = cells["idea"].index("a run took")
    found = {name.split(" (")[0]: words[place].replace("\xa0", " ") for name, words in cells.items() if len(words) > 5}
    assert {name: found[name] for name in (BASE, "a", "b", "c")} == {
        BASE: "1 min 30 s",
        "a": "1 min 40 s",
        "b": "—",
        "c": "—",
    }


def test_collapsed_codes_are_no_success(tmp_path: Path) -> None:
    idea = Idea(files=[], published="p", predicted="q")
    family = Family(base=[], main="psnr", lower_is_better=False, shown=[], ideas={"a": idea, "b": idea}, overrides={})
    rows = [
        row(name, seed, 60.0, psnr=psnr + seed, codebook_usage=usage)
        for name, psnr, usage in ((BASE, 20.0, 0.6), ("a", 25.0, 0.02), ("b", 25.0, 0.5))
        for seed in (0, 1, 2)
    ]
    write_page({"tokenizers": family}, rows, tmp_path / "league")
    text = (tmp_path / "league.md").read_text("utf-8")
    verdicts = {
        line.split(" |")[0]: line.split(" | ")[-3] for line in text.splitlines() if line.startswith(("| a", "| b "))
    }
    assert verdicts == {"| a": "codes collapsed", "| b": "better"}
    assert "2 of 2 ideas measured: 1 better, 0 worse, 0 undecided, 1 collapsed, by psnr" in text

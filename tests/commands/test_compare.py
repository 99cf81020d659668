"""`alitok compare`: what differs, what belongs together, and a page that holds it all."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alitok.artifacts.folder import save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.reports.comparison import write_page
from alitok.reports.runs import (
    ABSENT,
    count_parameters,
    differences,
    flatten,
    group,
    group_names,
    open_runs,
    spread,
    training_seconds,
)

Block = Callable[..., dict[str, Any]]
CURVE = [(1, 0.9), (10, 0.5), (20, 0.25)]


def write_run(
    root: Path, model: dict[str, Any], seed: int = 0, curve: float = 1.0, data: dict[str, Any] | None = None
) -> None:
    """What a fit leaves, but for its artifact."""
    kind = "generator" if "generator" in model else "tokenizer"
    config = {
        "seed_everything": seed,
        "model": {"class_path": f"some.{kind}", "init_args": {"seed": seed, **model}},
        "data": {"class_path": "some.Data", "init_args": {"seed": seed, "source": "shapes", **(data or {})}},
        "trainer": {"default_root_dir": str(root), "callbacks": {"x": {"dirpath": f"{root}/checkpoints"}}},
    }
    (root / "logs" / "version_0").mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    rows = "".join(f"{step},{curve * value},{value / 2}\n" for step, value in CURVE)
    (root / "logs" / "version_0" / "metrics.csv").write_text(f"step,val/loss,train/loss\n{rows}")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_block: Block, small_generator_block: Block) -> Path:
    """runs/{a,b}/{stage1,generator}: a and b differ by seed; c/stage1 has another learning rate and no generator."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, lr in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 0.2)):
        torch.manual_seed(ord(name))
        root = folder / name
        write_run(root / "stage1", {"lr": lr, "tokenizer": {}}, seed, 1 + lr)
        block = small_tokenizer_block()
        card = {"kind": "tokenizer", "steps": 20, "images_seen": 160, "metrics": {"psnr": 20.0 + seed}}
        card = save_artifact(root / "stage1" / "artifact", block, build(block), card)
        if name != "c":
            tokens = {"cache": f"{root}/tokens"}
            write_run(root / "generator", {"generator": {"width": 32}}, seed, data=tokens)
            generator = {"kind": "generator", "tokenizer": card["digest"], "class_names": ["<ring>", "star", "heart"]}
            block = small_generator_block()
            save_artifact(root / "generator" / "artifact", block, build(block), generator)
        (root / "report.json").write_text(json.dumps({"fid": 3.0 + seed, "comparable": False, "seconds": {"x": 1}}))
    return folder


def test_flatten_speaks_as_the_command_line_does() -> None:
    config = {"model": {"class_path": "m.M", "init_args": {"width": 3, "deep": {"init_args": 1}}}, "empty": {}}
    assert flatten(config) == {"model.class_path": "m.M", "model.width": 3, "model.deep.init_args": 1, "empty": {}}


def test_paths_and_seeds_that_follow_the_run_do_not_differ(line: Path) -> None:
    a, b, c = open_runs([line / name for name in "abc"])
    assert differences([a.parts["generator"], b.parts["generator"]]) == {"seed_everything": [0, 1]}
    assert differences([a.parts["stage1"], c.parts["stage1"]]) == {"model.lr": [0.1, 0.2]}
    found = differences([a.parts["stage1"], None, b.parts["stage1"]])
    assert found == {"seed_everything": [0, ABSENT, 1]}


def test_data_that_differ_do_differ(tmp_path: Path) -> None:
    for name, source in (("a", tmp_path / "x"), ("b", tmp_path / "y"), ("deep/c", tmp_path / "x")):
        write_run(tmp_path / name, {"tokenizer": {}}, data={"source": str(source)})
    a, b, c = (one.parts["tokenizer"] for one in open_runs([tmp_path / name for name in ("a", "b", "deep/c")]))
    assert list(differences([a, b])) == ["data.source"]
    assert differences([a, c]) == {}  # the same folder, though it lies elsewhere as seen from the run


def test_runs_that_differ_by_seed_are_one_group(line: Path) -> None:
    groups = group(open_runs([line / name for name in "abc"]))
    assert [[one.name for one in members] for members in groups] == [["a", "b"], ["c"]]
    assert group_names(groups) == ["a, b (2 seeds)", "c"]
    assert groups[0][0].numbers == {"fid": 3.0, "stage1: psnr": 20.0}
    assert spread([3.0, 4.0]) == (3.5, pytest.approx(0.5**0.5))
    assert spread([3.0]) == (3.0, None)


def test_group_names_are_what_the_members_share(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed-{seed}" / name for seed in (0, 1) for name in ("causal", "prefix")]
    for folder in folders:
        write_run(folder, {"tokenizer": {}, "name": folder.name}, seed=int(folder.parent.name[-1]))
    assert group_names(group(open_runs(folders))) == ["causal (2 seeds)", "prefix (2 seeds)"]


def test_cost(line: Path, tmp_path: Path, small_tokenizer_block: Block) -> None:
    weights = line / "a" / "stage1" / "artifact" / "model.safetensors"
    expected = sum(tensor.numel() for tensor in build(small_tokenizer_block()).state_dict().values())
    assert count_parameters(weights) == expected
    assert training_seconds(line / "a" / "stage1") is None
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for version, times in enumerate(([100.0, 110.0, 130.0], [500.0, 505.0])):  # interrupted, and gone on later
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        with open(folder / "events.out.tfevents.1.machine.2", "wb") as file:
            for wall_time in times:
                RecordWriter(file).write(Event(wall_time=wall_time, step=1).SerializeToString())
    assert training_seconds(tmp_path) == 35


def test_the_page(line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    run(["compare", *(str(line / name) for name in "abc"), "--out", str(out), "--images", "3"])
    said = capsys.readouterr().out
    assert "c: no generator" in said
    assert "3 runs" in said
    page = out.read_text(encoding="utf-8")
    assert "3 runs of 2 configurations" in page
    assert "3.5 ± 0.707" in page  # fid over seeds
    assert "model.<wbr>lr" in page
    assert "&lt;ring&gt;" in page
    assert "<ring>" not in page
    assert page.count("redrawn by a, b (2 seeds)") == page.count("redrawn by c") == 3
    assert page.count("sample of a, b (2 seeds)") == 6  # three classes, two each
    lines = [len(re.findall(rf"\b{name} ends at", page)) for name in "abc"]
    assert lines[0] == lines[1] == lines[2] + 2  # only a and b have both parts
    assert "prefers-color-scheme: dark" in page
    assert "://" not in page
    assert "url(" not in page
    assert '<meta name="viewport"' in page


def test_a_ninth_group_looks_unlike_the_first(tmp_path: Path) -> None:
    """There are eight colors; the ninth group has the first one, and dashes in its lines, legend and keys."""
    for number in range(9):
        write_run(tmp_path / f"run{number}", {"tokenizer": {}, "lr": 0.1 * number})
    write_page([tmp_path / f"run{number}" for number in range(9)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    legend = re.search('<div class="legend">(.*?)</div>', page, re.DOTALL)
    assert legend is not None
    marks = re.findall('<span class="(.*?)" style="(.*?)">run', legend[1])
    assert [mark[0] for mark in marks] == ["name"] * 8 + ["name dashed"]
    assert marks[0][1] == marks[8][1]
    assert len(set(marks)) == 9
    keys = re.findall('<span class="key">(.*?)</span></figcaption>', page, re.DOTALL)
    assert len(keys) == 2  # a chart of each loss
    assert all(re.findall(r'<span( class="dashed")? style', key) == [""] * 8 + [' class="dashed"'] for key in keys)
    (rule,) = re.findall(r"^(.*dashed::before) {(.*)}$", page, re.MULTILINE)
    assert rule[0] == ".key .dashed::before, .name.dashed::before"
    assert "repeating-linear-gradient(90deg, var(--own)" in rule[1]
    assert page.count("\n.name::before") == 1


def test_a_second_stage_borrows_the_generator_of_its_tokens(
    line: Path, tmp_path: Path, small_tokenizer_block: Block
) -> None:
    from alitok.artifacts.folder import load_tokenizer

    first = load_tokenizer(line / "a" / "stage1" / "artifact")
    block = small_tokenizer_block(2)
    second = build(block)
    second.encoder.load_state_dict(first.encoder.state_dict())
    second.quantizer.load_state_dict(first.quantizer.state_dict())
    write_run(tmp_path / "two" / "stage2", {"lr": 0.1, "tokenizer": {}})
    save_artifact(tmp_path / "two" / "stage2" / "artifact", block, second, {"kind": "tokenizer"})
    assert write_page([line / "a", tmp_path / "two"], tmp_path / "page.html", images=2) == []
    assert (tmp_path / "page.html").read_text().count("sample of") == 8


def test_an_unfinished_run_is_shown_without_pictures(line: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "young", {"tokenizer": {}})
    notes = write_page([line / "c", tmp_path / "young"], tmp_path / "page.html")
    assert any("not finished" in note for note in notes)
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--out", "p.html"], "two or more"),
        (["a", "b", "--out", "p.png"], "html"),
        (["a", "b", "--out", "p.html", "--images", "0"], "--images"),
        (["a", "nowhere", "--out", "p.html"], "is no folder"),
        (["a", "a/../a", "--out", "p.html"], "given twice"),
        (["a", "empty", "--out", "p.html"], "holds no run"),
        (["a", "broken", "--out", "p.html"], "no configuration"),
    ],
)
def test_wrong_usage(words: list[str], message: str, line: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("a: 1")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(line / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        run(["compare", *words])
    assert not (tmp_path / "p.html").exists()

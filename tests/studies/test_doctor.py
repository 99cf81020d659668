"""The minute's look at a machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.cli import main
from alitok.networks.frozen import VGG16
from alitok.profiling.bench_machine import Machine
from alitok.studies.doctor import quick
from alitok.studies.doctor.quick import Finding

CPU = torch.device("cpu")


def ended(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *words])
    return int(end.value.code or 0)


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the look finds, in place of the machine's own."""
    found = [Finding("disk", "right", "fast"), Finding("loader", "slow", "3 crops/s", "more cores")]
    monkeypatch.setattr(quick, "look", lambda *_: iter(found))
    return found


def test_slow_is_no_failure(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    out = capsys.readouterr().out
    assert "slow     loader: 3 crops/s\n         more cores\n" in out
    assert out.endswith("1 right, 1 slow\n")


@pytest.mark.parametrize("state", ["missing", "wrong"])
def test_the_exit_status(state: Any, findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings.append(Finding("VGG16", state, "no file", "download it"))
    assert ended("--json") == 2
    assert json.loads(capsys.readouterr().out)[-1] == {
        "name": "VGG16", "state": state, "found": "no file", "advice": "download it"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out x", "--out belongs to --full"),
        ("--tiny", "--tiny belongs to --full"),
        ("--full", "--full needs --out"),
        ("--full --out x --json", "leave out --json"),
        ("--full --out x --only speed", "--only speed: the stages are setup, limits"),
        ("--device cuda:7", "is not available here"),
    ],
)
def test_wrong_words(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda" in words and torch.cuda.device_count() > 7:
        pytest.skip("eight GPUs are refused only on a machine with fewer, and this one has them")
    assert ended(*words.split()) == 2
    assert sentence in capsys.readouterr().err


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Iterator[Finding]:
        raise RuntimeError("no such device")

    def none(*_: Any) -> Iterator[Finding]:
        yield from ()

    for name in ("versions", "devices", "collectives", "compilers", "shared_memory", "weights", "loader", "paths"):
        monkeypatch.setattr(quick, name, broken if name == "devices" else none)
    first, second = quick.look(CPU, tmp_path / "not" / "there")
    assert (first.name, first.state, first.found) == ("device", "wrong", "RuntimeError: no such device")
    assert second.name == "disk"
    assert second.state in ("right", "slow")
    assert str(tmp_path) in second.found
    assert not list(tmp_path.iterdir())


def test_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / VGG16.file
    place.parent.mkdir(parents=True)
    place.touch()
    found = {finding.name: finding for finding in quick.weights()}
    assert found["VGG16 for LPIPS"] == Finding("VGG16 for LPIPS", "right", str(place))
    assert found["ConvNeXt-S"].state == "missing"
    assert found["ConvNeXt-S"].advice.startswith("download https://")


def test_the_loader_is_held_against_the_device(tmp_path: Path) -> None:
    """One that a processor outruns is right, one that a fast GPU outruns is slow."""
    slow, fast = Machine(CPU, 1e9, 1e9, 1e9, None), Machine(CPU, 1e18, 1e18, 1e9, None)
    assert [next(quick.loader([machine])).state for machine in (slow, fast)] == ["right", "slow"]


def test_two_processes_exchange() -> None:
    (finding,) = quick.collectives(CPU)
    assert finding.state == "right", finding
    assert "2 x cpu: sums agree" in finding.found


@pytest.mark.slow
def test_the_whole_look(tmp_path: Path) -> None:
    found = list(quick.look(CPU, tmp_path))
    assert not [finding for finding in found if finding.state == "wrong"]
    assert {"versions", "speed", "collectives", "loader", "FSDP2 on one device, with samples"} <= {
        f.name for f in found
    }

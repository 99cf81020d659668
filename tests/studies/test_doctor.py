"""The short look at a machine, of one to two minutes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

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
    slow = Finding("loader", "slow", "3 crops/s", "more cores", 3.0, "crops/s", 9.5)
    found = [Finding("disk", "right", "fast"), slow]

    def look(device: torch.device, folder: Path, machines: list[Machine]) -> Iterator[Finding]:
        machines.append(Machine(CPU, 1e9, 2e9, 3e9))
        yield from found

    monkeypatch.setattr(quick, "look", look)
    return found


def test_slow_is_no_failure(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    out = capsys.readouterr().out
    assert "slow     loader: 3 crops/s\n         more cores\n" in out
    assert out.endswith("1 right, 1 slow\n")


@pytest.mark.parametrize("state", ["missing", "wrong"])
def test_the_exit_status(state: Any, findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings.append(Finding("VGG16", state, "no file", "download it"))
    assert ended() == 2
    assert f"{state:<9}VGG16: no file\n         download it\n" in capsys.readouterr().out


def test_the_json_has_the_machine_and_the_lines(
    findings: list[Finding], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"]["bfloat16_flops"] == 2e9
    assert printed["lines"] == [
        {"name": "disk", "state": "right", "value": "fast", "unit": "", "wanted": None, "todo": ""},
        {"name": "loader", "state": "slow", "value": 3.0, "unit": "crops/s", "wanted": 9.5, "todo": "more cores"},
    ]
    main(["doctor", "--json", str(tmp_path / "doctor.json")])
    assert json.loads((tmp_path / "doctor.json").read_text()) == printed
    assert "slow     loader: 3 crops/s" in capsys.readouterr().out


def test_a_json_file_that_cannot_be_written_is_refused_before_the_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quick, "look", lambda *_: pytest.fail("a check has run"))
    (tmp_path / "file").touch()
    assert ended("--json", str(tmp_path / "file" / "doctor.json")) == 2
    assert "doctor.json" in capsys.readouterr().err


def test_the_json_of_a_machine_that_was_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quick, "look", lambda *_: iter([Finding("device", "wrong", "no such device")]))
    assert ended("--json") == 2
    assert json.loads(capsys.readouterr().out)["machine"] is None


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
    first, *others = quick.look(CPU, tmp_path / "not" / "there", [])
    assert (first.name, first.state, first.found) == ("device", "wrong", "RuntimeError: no such device")
    assert [finding.name for finding in others] == ["disk", "disk space"]
    for finding in others:
        assert finding.value is not None
        assert finding.wanted is not None
        assert finding.state == ("slow" if finding.value < finding.wanted else "right")
        assert str(tmp_path) in finding.found
    assert not list(tmp_path.iterdir())


def test_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / VGG16.file
    place.parent.mkdir(parents=True)
    place.touch()
    found = {finding.name: finding for finding in quick.weights()}
    assert found["VGG16 for LPIPS"] == Finding("VGG16 for LPIPS", "right", str(place))
    assert found["ConvNeXt-S"].state == "slow"  # most runs need none of them
    assert found["ConvNeXt-S"].todo.startswith("download https://")


def test_a_missing_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "has_compiler", lambda: False)
    (finding,) = quick.compilers(CPU)
    assert finding.state == "slow"
    assert "install g++" in finding.todo


def test_the_loader_is_held_against_the_device(tmp_path: Path) -> None:
    """One that a processor outruns is right, one that a fast GPU outruns is slow."""
    slow, fast = Machine(CPU, 1e9, 1e9, 1e9, None), Machine(CPU, 1e18, 1e18, 1e9, None)
    assert [next(quick.loader([machine])).state for machine in (slow, fast)] == ["right", "slow"]


class Topology:
    """Stands in for `pathlib.Path`: the system's files of processors, two threads each, or none."""

    files: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str) -> None:
        self.path = path

    def read_text(self) -> str:
        if self.path not in self.files:
            raise FileNotFoundError(self.path)
        return self.files[self.path]


@pytest.mark.parametrize(
    ("allowed", "known", "cores"),
    [({0, 1, 2, 3}, 4, 2), ({0, 2}, 4, 1), ({0, 1}, 4, 2), ({0, 1, 2, 3}, 0, 4), ({0, 1, 2, 3}, 3, 4)],
)
def test_hyperthreads_of_a_core_count_once(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], known: int, cores: int
) -> None:
    place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {place.format(number): f"{number % 2},{number % 2 + 2}\n" for number in range(known)}
    monkeypatch.setattr(Topology, "files", files)
    monkeypatch.setattr(quick, "Path", Topology)
    monkeypatch.setattr(quick.os, "sched_getaffinity", lambda process: allowed)
    assert quick.physical_cores() == cores


def test_a_thread_on_each_core_is_right_and_fewer_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "measure_machine", lambda *_: Machine(CPU, 1e9, 1e9, 1e9))
    monkeypatch.setattr(quick, "physical_cores", lambda: 8)
    monkeypatch.setattr(quick.os, "sched_getaffinity", lambda process: set(range(16)))
    for threads, state in ((8, "right"), (16, "right"), (4, "slow")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        finding = next(quick.devices(CPU, []))
        assert (finding.name, finding.state, finding.found) == ("processor", state, f"8 cores, torch takes {threads}")


def test_the_loader_counts_cores_and_not_hyperthreads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "decoding_rate", lambda *_: 10.0)
    monkeypatch.setattr(quick, "physical_cores", lambda: 8)
    (finding,) = quick.loader([])
    assert (finding.value, finding.unit) == (80.0, "crops/s")
    assert finding.found.endswith("on 8 cores")


def test_free_memory_of_a_gpu_is_read_before_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU of 16 GiB, of which a measurement keeps 2 GiB."""
    free = {0: 15.9 * 2**30, 1: 3.0 * 2**30}
    cuda = torch.device("cuda:0")

    def measured(device: torch.device, seconds: float) -> Machine:
        free[0] -= 2 * 2**30
        return Machine(cuda, 1e9, 2e9, 3e9, 4e9)

    monkeypatch.setattr(quick, "measure_machine", measured)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: type("Properties", (), {"total_memory": 16 * 2**30})
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 16 * 2**30))
    found = {finding.name: finding for finding in quick.devices(cuda, [])}
    assert (found["GPU 0"].state, found["GPU 0"].todo) == ("right", "")
    assert (found["GPU 1"].state, found["GPU 1"].todo) == ("slow", "other work holds memory there")
    assert (found["GPU 1"].value, found["GPU 1"].unit) == (3.0, "GiB")


def test_a_path_that_waits_for_the_device_is_slow_and_a_check_that_says_no_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[dict[str, Any]] = [
        {"name": "waits at training/step.py:9", "value": 37, "unit": "times"},
        {"name": "a step without waits for the device", "value": "no", "unit": ""},
        {"name": "compiled: share of equal ids", "value": 0.987654321, "unit": ""},
        {"name": "softcfg: here = on the CPU", "value": "yes", "unit": ""},
        {"name": "compiled", "value": None, "unit": "", "skipped": "no compiler"},
        {"name": "FSDP2", "value": None, "unit": "", "failed": "RuntimeError: no"},
    ]
    monkeypatch.setattr(quick, "run_stage", lambda *_, **__: "done (1 s)")
    monkeypatch.setattr(quick, "read_lines", lambda out, stage: lines if stage == "right" else [])
    assert [(finding.name, finding.state, finding.found) for finding in quick.paths(CPU)] == [
        ("waits at training/step.py:9", "slow", "37 times"),
        ("a step without waits for the device", "wrong", "no"),
        ("compiled: share of equal ids", "right", "0.988"),
        ("softcfg: here = on the CPU", "right", "yes"),
        ("FSDP2", "wrong", "RuntimeError: no"),
    ]


def test_two_processes_exchange() -> None:
    (finding,) = quick.collectives(CPU)
    assert finding.state == "right", finding
    assert "2 x cpu: sums agree" in finding.found


@pytest.mark.slow
def test_the_whole_look(tmp_path: Path) -> None:
    machines: list[Machine] = []
    found = list(quick.look(CPU, tmp_path, machines))
    assert len(machines) == 1
    assert not [finding for finding in found if finding.state == "wrong"]
    assert {"versions", "speed", "collectives", "loader", "FSDP2 on one device, with samples"} <= {
        f.name for f in found
    }

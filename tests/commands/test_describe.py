"""`alitok describe`: what it prints, for people and for programs, and how trainer settings are read."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from alitok import cli
from alitok.common.errors import BadInput
from alitok.common.hardware import GPUS, measure_cpu
from alitok.config import compose_run
from alitok.profiling.cost import Layout
from alitok.profiling.record import layout_of

ROOT = Path(__file__).parents[2] / "experiments"
SMALL = ["-c", str(ROOT / "demo/generator.yaml"), "--model.generator.depth", "1"]


def describe(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    cli.run(["describe", *SMALL, "--json", *words])
    return dict(json.loads(capsys.readouterr().out))


def test_json_has_what_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    record = describe(capsys, "--hardware", "A100", "--trainer.max_steps", "100")
    parameters = record["parameters"]
    parts = sum(count for name, count in parameters.items() if name not in ("total", "trainable"))
    assert parameters["total"] == parameters["trainable"] == parts
    assert record["tokens"] == 72
    assert (record["global_batch"], record["steps"], record["images_seen"]) == (64, 100, 6400)
    assert record["memory_bytes"] == sum(record["memory_by_kind"].values())
    assert record["flops_per_step"] == sum(record["flops_by_part"].values()) > 1e9
    assert record["fits"] == {"A100": True}
    expected = 100 * record["flops_per_step"] / GPUS["A100"].tf32 / 0.4 / 3600
    assert record["hours"]["A100"] == pytest.approx(expected)


def test_hours_fall_with_utilization_and_devices_and_epochs_follow_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--hardware", "H100", "--utilization"]
    one = describe(capsys, *options, "0.2")
    eight = describe(capsys, *options, "0.4", "--trainer.devices", "8", "--images", "9600")
    assert one["hours"]["H100"] == pytest.approx(16 * eight["hours"]["H100"])
    assert (eight["strategy"], eight["micro_batch"], eight["global_batch"]) == ("ddp", 8, 64)
    assert eight["epochs"] == eight["images_seen"] / 9600
    assert one["dataset_images"] == 1_281_167


def test_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["describe", *SMALL, "--trainer.accelerator", "cpu"])
    text = capsys.readouterr().out
    for word in ("parameters", "tokens", "FLOPs a step", "memory per device", "global batch", "images seen", "H100"):
        assert word in text
    assert "this CPU" in text
    assert "allowance" in text


@pytest.mark.parametrize(
    ("files", "overrides", "expected"),
    [
        ([], [], Layout("cpu")),
        ([], ["--trainer.devices", "4", "--trainer.num_nodes", "2"], Layout("cpu", 8, "ddp")),
        (["strategies/ddp.yaml"], ["--trainer.devices", "[0, 1]"], Layout("cpu", 2, "ddp")),
        (["strategies/ddp.yaml"], [], Layout("cpu", 1, "single")),
        (["strategies/fsdp.yaml"], ["--trainer.devices", "4"], Layout("cpu", 4, "fsdp", 4)),
    ],
)
def test_layout_of_a_trainer(files: list[str], overrides: list[str], expected: Layout) -> None:
    paths = [ROOT / "demo/generator.yaml", *(ROOT / file for file in files)]
    trainer = compose_run(paths, ["--trainer.accelerator", "cpu", *overrides])["trainer"]
    assert layout_of(trainer) == expected
    assert layout_of(trainer, "H100").device == "cuda"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--utilization", "40"], "between 0 and 1"),
        (["--images", "0"], "at least 1"),
        (["--trainer.strategy", "deepspeed"], "strategies ddp and fsdp"),
        (["--trainer.devices", "few"], "number of devices"),
        (["--data.global_bach", "3"], "global_batch"),
    ],
)
def test_bad_input_is_said_in_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cli.run(["describe", *SMALL, *words])


def test_an_average_under_fsdp_is_refused_as_in_training() -> None:
    files = [str(ROOT / file) for file in ("strategies/fsdp.yaml", "options/average.yaml")]
    with pytest.raises(BadInput, match="cannot be kept while FSDP shards them"):
        cli.run(["describe", *SMALL, "-c", files[0], "-c", files[1], "--trainer.devices", "2"])


def test_the_processor_is_measured() -> None:
    cpu = measure_cpu(128)
    assert cpu.single > 1e8
    assert cpu.memory > 1e9
    assert cpu.seconds({("part", "float32"): cpu.single}, 0.5) == pytest.approx(2.0)


def test_a_processor_that_was_busy_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))  # a second passes between any two looks
    assert measure_cpu(8).single == 2 * 8**3


def test_it_names_every_class_that_is_not_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["demo/generator.yaml", "ideas/rear.yaml", "ideas/ort.yaml"]
    words = [word for file in files for word in ("-c", f"experiments/{file}")]
    cli.run(["describe", *words, "--json", "--model.start_from", "there"])
    record = json.loads(capsys.readouterr().out)
    assert record["losses"].keys() == {"current", "next"}
    expected = {"generator": "AnyOrderGenerator", "corruptions.noise": "NoisyContext", "order": "RandomOrder"}
    assert record["classes"] == expected
    assert record["options"] == {"start_from": "there"}
    cli.run(["describe", *words])
    shown = capsys.readouterr().out
    assert all(name in shown for name in expected.values())

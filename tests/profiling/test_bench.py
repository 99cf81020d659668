"""`alitok bench`: what it writes, what it refuses, and that its baselines compute what they stand for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from alitok.cli import main
from alitok.commands import bench
from alitok.common import devices
from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.models.quantizer import ClusteredQuantizer
from alitok.profiling import bench_data, bench_sampling, bench_training
from alitok.profiling.bench_data import flops_of
from alitok.profiling.bench_machine import Machine, Options, Row
from alitok.profiling.bench_sampling import GrowingCache, random_generator, sampling, step_limit, window_rows
from alitok.profiling.bench_training import merged_update, one_hot_update, peak_bytes, training_config, written_out

MACHINE = Machine(torch.device("cpu"), 1e11, 4e11, 2e10)
KEYS = {"name", "value", "unit", "baseline", "ratio", "limit", "share_of_limit"}


def options(experiment: str = "demo", sizes: tuple[str, ...] = ("177M",)) -> Options:
    return Options(MACHINE, experiment, sizes, (2,), ("float32", "bfloat16"))


def test_rows_say_how_many_times_better_and_how_near_the_limit() -> None:
    speed = Row("a", 30.0, "images/s", baseline=10.0, limit=40.0)
    assert (speed.ratio, speed.share_of_limit) == (3.0, 0.75)
    memory = Row("b", 5.0, "bytes", baseline=200.0, limit=10.0, less=True)
    assert (memory.ratio, memory.share_of_limit) == (40.0, 2.0)
    alone = Row("c", 5.0, "s")
    assert alone.record().keys() >= KEYS
    assert alone.record()["ratio"] is None


def test_the_command_writes_machine_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alitok.profiling import bench_machine, bench_sampling

    monkeypatch.setattr(bench_machine, "measure_machine", lambda device: MACHINE)
    monkeypatch.setattr(bench_sampling, "has_compiler", lambda: False)
    file = tmp_path / "bench.json"
    words = ["bench", "sampling", "--experiment", "demo", "--batch", "2", "--json", str(file)]
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    main(words)
    assert "bfloat16 is left out" in capsys.readouterr().out
    assert {row["name"].split("-")[-1] for row in json.loads(file.read_text())["rows"]} == {"float32"}
    main([*words, "--precision", "float32", "bfloat16"])
    content = json.loads(file.read_text())
    assert content["machine"]["float32_flops"] == 1e11
    names = ["sampling-demo-b2-float32", "sampling-demo-b2-bfloat16", "softcfg-demo-b2-bfloat16"]
    names += ["windows-demo-b2-float32"]
    names += ["kernels-demo-b2-float32", "kernels-demo-b2-bfloat16"]
    assert [row["name"] for row in content["rows"]] == names
    for row in (content["rows"].pop(), content["rows"].pop()):
        assert row["baseline"] == min(row["step_ms"].values())
        assert row["ratio"] == pytest.approx(row["baseline"] / row["value"])
    assert set(content["machine"]["kernels"]) == {"attention", "decode", "linear"}
    windows = content["rows"].pop()
    assert windows["ratio"] == pytest.approx(windows["value"] / windows["baseline"])
    assert 0 < windows["passes_per_token"] <= 1
    assert 0 <= windows["right_drafts"] <= 1
    soft = content["rows"].pop()
    assert soft["ratio"] == pytest.approx(soft["value"] / soft["baseline"])
    for row in content["rows"]:
        assert row.keys() >= KEYS
        assert row["value"] > 0
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
        assert row["share_of_limit"] == pytest.approx(row["value"] / row["limit"])
        assert len(row["step_ms_by_quarter"]) == 4
    assert content["rows"][0]["equal_argmax"] > 0.99
    assert "sampling-demo-b2-float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "no benchmark 'speed'"),
        (["sampling", "--batch", "0"], "--batch must be at least 1"),
        (["sampling", "--experiment", "demos"], "did you mean 'demo'"),
        (["sampling", "--experiment", "release", "--size", "5B"], "no size '5B'; there are 177M, 318M, 662M"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alitok.profiling import bench_machine, bench_sampling

    monkeypatch.setattr(bench_machine, "measure_machine", lambda device: MACHINE)
    monkeypatch.setattr(bench_sampling, "has_compiler", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_growing_cache_gives_the_logits_of_teacher_forcing() -> None:
    generator = random_generator(options().model("generator")["generator"], torch.device("cpu"))
    ids = torch.randint(generator.codebook_size, (1, generator.num_tokens))
    labels = torch.tensor([3])
    cache = GrowingCache(len(generator.blocks), (1, generator.heads, 0, generator.head_dim), torch.device("cpu"))
    with torch.no_grad():
        expected = generator(ids, labels)
        x = generator.embed_labels(labels)
        for position in range(12):
            logits = generator.output(generator.step(x, torch.tensor([position]), cache)[:, 0])
            torch.testing.assert_close(logits, expected[:, position], rtol=1e-3, atol=1e-3)
            x = generator.embed_tokens(ids[:, position : position + 1])


def test_the_limit_of_a_step_counts_weights_and_cache_once() -> None:
    generator = random_generator(options().model("generator")["generator"], torch.device("cpu"))
    weights = sum(layer.weight.numel() for layer in generator.modules() if isinstance(layer, torch.nn.Linear))
    width = generator.heads * generator.head_dim
    cache = 2 * len(generator.blocks) * width * (generator.num_tokens + 1)  # keys and values of two rows, half full
    slow_memory = Machine(torch.device("cpu"), 1e15, 1e15, 1e9)
    seconds, bound = step_limit(generator, 1, "float32", slow_memory)
    assert bound == "memory bandwidth"
    assert seconds == pytest.approx(4 * (weights + cache) / 1e9)
    seconds, bound = step_limit(generator, 1, "float32", Machine(torch.device("cpu"), 1e9, 1e9, 1e15))
    assert bound == "float32 products"
    assert seconds == pytest.approx(2 * (2 * weights + cache) / 1e9)


class Gpu(Machine):
    """A processor that counts as a GPU."""

    cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize(("machine", "seconds"), [(MACHINE, 100.0), (Gpu(torch.device("cpu"), 1e11, 4e11, 2e10), 1.0)])
def test_windows_on_a_gpu_are_timed_after_the_capture_of_graphs(
    machine: Machine, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a sampler takes 100 s for its first batch and 1 s for each later one."""
    clock = [0.0]

    class Sampler:
        def __init__(self, generator: Any, draw: Any) -> None:
            one = torch.ones(1)
            self.windows = SimpleNamespace(passes=0, accepted=one, tried=2 * one) if draw.window > 1 else None
            self.draws = 0

        def sample(self, labels: torch.Tensor) -> None:
            clock[0] += 1.0 if self.draws else 100.0
            self.draws += 1
            if self.windows is not None:
                self.windows.passes += 12

    monkeypatch.setattr(bench_sampling, "Sampler", Sampler)
    monkeypatch.setattr(bench_sampling, "wait", lambda device: clock[0])
    generator: Any = SimpleNamespace(num_classes=10, num_tokens=16)
    (row,) = window_rows(generator, replace(options(), machine=machine), "x")
    assert (row.value, row.baseline) == (2 / seconds, 2 / seconds)
    assert row.notes == {"window": 8, "passes_per_token": 0.75, "right_drafts": 0.5}


def test_a_plain_step_is_timed_from_the_end_of_earlier_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for a device works for 7 s before each wait that nothing was timed for."""
    generator = random_generator(options().model("generator")["generator"], torch.device("cpu"))
    clock, waits = [0.0], []

    def wait(device: torch.device) -> float:
        clock[0] += 1.0 if len(waits) % 2 else 7.0
        waits.append(clock[0])
        return clock[0]

    monkeypatch.setattr(bench_sampling, "wait", wait)
    assert bench_sampling.plain_step(generator, 1) == 1.0
    assert len(waits) >= 2 * bench_sampling.PLAIN_STEPS


def test_sampling_takes_every_size_of_an_experiment() -> None:
    assert options("release").label("662M") == "662M"
    assert options("imagenet512").label("177M") == "imagenet512-177M"
    assert options("demo").label("177M") == "demo"
    with pytest.raises(BadInput, match="no size"):
        next(sampling(options("release", ("1M",))))


@pytest.mark.parametrize("causal", [False, True])
def test_written_out_attention_is_the_fused_one(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 8).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(written_out(q, k, v, is_causal=causal), expected)


def test_the_one_hot_form_makes_the_same_update() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 8)
    quantizers = []
    for update in (merged_update, one_hot_update):
        torch.manual_seed(1)
        quantizer = ClusteredQuantizer(64, 8).train()
        torch.nn.init.normal_(quantizer.codebook.weight)
        update(quantizer, features)
        quantizers.append(quantizer)
    torch.testing.assert_close(quantizers[0].codebook.weight, quantizers[1].codebook.weight)
    torch.testing.assert_close(quantizers[0].usage, quantizers[1].usage)


def test_the_clustering_update_takes_a_twentieth_of_the_one_hot_form() -> None:
    assert bench_training.CLUSTERED == (48, 273, 4096, 32)
    assert 20 * peak_bytes(merged_update) < peak_bytes(one_hot_update)


def test_training_takes_one_micro_batch_of_a_phase_without_weight_files() -> None:
    config = training_config(options("imagenet256"), "tokenizer-stage1", None, "bfloat16", None)
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["data"]["init_args"]["global_batch"] == config["data"]["init_args"]["micro_batch"] == 2
    model = config["model"]["init_args"]
    assert list(model["phases"]) == ["main"]
    assert model["losses"]["convnext"]["init_args"]["weights"] == "random:0"
    assert model["losses"]["prefix"]["init_args"]["perceptual"]["init_args"]["weights"] == "random:0"


def test_flops_of_a_product() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops_of(lambda: a @ b) == 2 * 3 * 5 * 7


def test_training_steps_of_the_generator() -> None:
    rows = list(bench_training.steps(options(), "generator", "demo", "177M"))
    assert [row.name for row in rows] == ["training-demo-b2-float32", "training-demo-b2-bfloat16"]
    for row in rows:
        assert row.value > 0
        assert row.limit is not None
        assert row.baseline is not None


GPU = Machine(torch.device("cuda", 0), 5e13, 8e14, 4e12, 4e14)


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_the_file_is_written_after_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what stops a benchmark costs the rows that are missing, not those that are there."""
    from alitok.profiling import bench_machine, bench_sampling

    monkeypatch.setattr(bench_machine, "measure_machine", lambda device: MACHINE)
    file, written = tmp_path / "bench.json", []

    def rows(options: Options) -> Iterator[Row]:
        for number in range(3):
            written.append([row["name"] for row in json.loads(file.read_text())["rows"]])
            yield Row(f"row {number}", 1.0, "images/s")
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_sampling, "sampling", rows)
    with pytest.raises(SystemExit):
        main(["bench", "sampling", "--json", str(file)])
    assert written == [[], ["row 0"], ["row 0", "row 1"]]
    assert len(json.loads(file.read_text())["rows"]) == 3


@pytest.mark.parametrize("fails", ["plain_step", "draw_seconds"])
def test_sampling_that_does_not_fit_is_a_row_without_a_value(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alitok.profiling import bench_sampling

    monkeypatch.setattr(bench_sampling, "has_compiler", lambda: False)
    monkeypatch.setattr(bench_sampling, "plain_step", lambda *_: 0.1)
    monkeypatch.setattr(bench_sampling, "draw_seconds", lambda *_, **__: (1.0, [1.0]))
    monkeypatch.setattr(bench_sampling, fails, no_memory)
    monkeypatch.setattr(bench_sampling, "window_rows", lambda *_: iter(()))
    monkeypatch.setattr(bench_sampling, "kernel_rows", lambda *_: iter(()))
    records = [row.record() for row in sampling(options())]
    assert [row["name"] for row in records] == [
        "sampling-demo-b2-float32",
        "sampling-demo-b2-bfloat16",
        "softcfg-demo-b2-bfloat16",
    ]
    for row in records:
        if fails == "plain_step":
            assert row["value"] == 2.0
            assert (row["baseline"] is None) == row["name"].startswith("sampling")
        else:
            assert (row["value"], row["ratio"], row["share_of_limit"]) == (None, None, None)
            assert row["reason"] == "out of memory"


@pytest.mark.parametrize("plain_fits", [True, False])
def test_training_that_does_not_fit_is_a_row_without_a_value(plain_fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(config: Any, machine: Machine, plain: bool = False) -> float:
        return 1.0 if plain == plain_fits else no_memory()

    monkeypatch.setattr(bench_training, "step_seconds", seconds)
    for row in bench_training.steps(options(), "generator", "demo", "177M"):
        assert (row.value, row.baseline) == ((None, 2.0) if plain_fits else (2.0, None))
    if plain_fits:
        assert all(row.value is not None for row in bench_training.clustering(MACHINE, None))


@pytest.mark.parametrize("part", ["tokenizing", "evaluation"])
def test_other_rows_that_do_not_fit(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "tokenize" if part == "tokenizing" else "measure", no_memory)
    monkeypatch.setattr(bench_data, "RandomInception", lambda device: lambda images: WEIGHT @ WEIGHT)
    monkeypatch.setattr(bench_data, "one_at_a_time", lambda *_: 1.0)
    assert [row.value for row in getattr(bench_data, part)(options())] == [None] * (2 if part == "tokenizing" else 1)


WEIGHT = torch.ones(2, 2)


def test_a_table_with_such_rows(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show(MACHINE, [Row("a", None, "images/s", 1.0, 2.0, "products"), Row("b", 1.0, "images/s")], Console())
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(("machine", "baseline"), [(GPU, 8), (MACHINE, 128)])
def test_baselines_are_small_on_a_gpu(machine: Machine, baseline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[bool, int] = {}

    def seconds(config: Any, machine: Machine, plain: bool = False) -> float:
        taken[plain] = config["data"]["init_args"]["global_batch"]
        return 1.0

    monkeypatch.setattr(bench_training, "step_seconds", seconds)
    monkeypatch.setattr(bench_training, "cost", lambda *_: SimpleNamespace(turns=[SimpleNamespace(flops={})]))
    monkeypatch.setattr(Machine, "seconds", lambda *_: 1.0)
    (row,) = bench_training.steps(Options(machine, "demo", (), (128,), ("bfloat16",)), "generator", "demo")
    assert taken == {True: baseline, False: 128}
    assert (row.value, row.baseline) == (128.0, float(baseline))
    assert row.record()["baseline_batch"] == baseline


@pytest.mark.parametrize(("machine", "expected"), [(GPU, {"sampling": "high"}), (MACHINE, {})])
def test_each_part_computes_as_its_verb(
    machine: Machine, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alitok sample` lets a GPU take TF32, the others do not."""
    from alitok.profiling import bench_sampling

    found: dict[str, str] = {}

    def part(name: str) -> Any:
        def rows(options: Options) -> Iterator[Row]:
            found[name] = torch.get_float32_matmul_precision()
            yield Row(name, 1.0, "images/s")

        return rows

    homes = {"sampling": bench_sampling, "training": bench_training}
    for name in bench.PARTS:
        monkeypatch.setattr(homes.get(name, bench_data), name, part(name))
    bench.measure(bench.PARTS, replace(options(), machine=machine), Console(), lambda rows: None)
    assert found == dict.fromkeys(bench.PARTS, "highest") | expected


def test_the_peak_of_float32_is_the_one_that_it_runs_at() -> None:
    for tf32, peak in ((False, 5e13), (True, 4e14)):
        with float32_products(tf32):
            assert (GPU.peak("float32"), GPU.peak("bfloat16")) == (peak, 8e14)
            assert MACHINE.peak("float32") == 1e11
    assert GPU.tf32 == 4e14

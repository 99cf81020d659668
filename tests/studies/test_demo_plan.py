"""The demo's steps fit the minutes: timed by stand-ins, so that no test depends on this machine's speed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny, token_cache

from alitok.common.compiler import has_compiler
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.studies import demo_plan
from alitok.studies.demo_plan import CEILING, FLOOR, Plan, cut, loading_seconds, planned, timed_step

ROOT = Path(__file__).parents[2] / "experiments" / "demo"
CPU = torch.device("cpu")
SIZES = {"images": 1500, "samples": 1000, "classifier_steps": 400}
STAGES = {"stage1": "tokenizer-stage1", "stage2": "tokenizer-stage2", "generator": "generator"}


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    return {stage: compose_run([ROOT / f"{name}.yaml"]) for stage, name in STAGES.items()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of any step, by precision, and of any compiled one; no time to load."""
    seconds = {"32-true": 0.2, "bf16-mixed": 0.4, "compiled": 99.0}

    def timed(config: dict[str, Any], precision: str, device: torch.device) -> float:
        return seconds["compiled" if config["model"]["init_args"].get("compile_blocks") is True else precision]

    monkeypatch.setattr(demo_plan, "timed_step", timed)
    monkeypatch.setattr(demo_plan, "has_compiler", lambda: True)
    monkeypatch.setattr(demo_plan, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(demo_plan, "loading_seconds", lambda config: 0.0)
    return seconds


def test_the_faster_precision_and_as_many_steps_as_fit(
    configs: dict[str, Any], machine: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, configs, 12, "auto", CPU, SIZES)
    assert plan.precision == "32-true"
    assert FLOOR < plan.share < 1
    assert sum(plan.seconds.values()) == pytest.approx(12 * 60, abs=2)
    assert plan.left("samples and measures") == 0
    assert plan.left("stage1") == pytest.approx(sum(list(plan.seconds.values())[2:]))
    machine |= {"32-true": 0.8, "bf16-mixed": 0.1}
    assert planned(tmp_path / "other", configs, 12, "auto", CPU, SIZES).precision == "bf16-mixed"
    # a step in bf16-mixed may take minutes on such a processor, so none is timed
    monkeypatch.setattr(demo_plan, "has_bfloat16", lambda device: False)
    del machine["bf16-mixed"]
    assert planned(tmp_path / "old", configs, 12, "auto", CPU, SIZES).precision == "32-true"


def test_blocks_are_compiled_where_that_is_faster(
    configs: dict[str, Any], machine: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = planned(tmp_path / "plain", configs, 12, "auto", CPU, SIZES)
    machine["compiled"] = 0.19  # of 0.2: not worth it
    assert planned(tmp_path / "near", configs, 12, "auto", CPU, SIZES).compiled == []
    machine["compiled"] = 0.1
    compiled = planned(tmp_path / "fast", configs, 12, "auto", CPU, SIZES)
    assert compiled.compiled == ["generator"]
    assert compiled.share > plain.share
    parts = [{name: seconds / plan.share for name, seconds in plan.seconds.items()} for plan in (plain, compiled)]
    assert parts[1]["generator"] == pytest.approx(parts[0]["generator"] / 2, rel=1e-3)
    assert parts[1]["stage1"] == pytest.approx(parts[0]["stage1"], rel=1e-3)
    assert compiled.seconds["tokenize"] == plain.seconds["tokenize"]
    assert planned(tmp_path / "fast", configs, 12, "auto", CPU, SIZES) == compiled
    assert "compile_blocks" not in configs["generator"]["model"]["init_args"]
    monkeypatch.setattr(demo_plan, "has_compiler", lambda: False)
    assert planned(tmp_path / "none", configs, 12, "auto", CPU, SIZES).compiled == []


def test_work_of_the_cpu_is_counted_in_steps_of_the_cpu(
    configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The classifier, the token cache and the report never use the GPU, which trains twenty times as fast here."""
    monkeypatch.setattr(demo_plan, "timed_step", lambda config, precision, device: 0.2 if device == CPU else 0.01)
    monkeypatch.setattr(demo_plan, "has_compiler", lambda: False)
    monkeypatch.setattr(demo_plan, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(demo_plan, "loading_seconds", lambda config: 0.0)
    plans = [
        planned(tmp_path / kind / precision, configs, 0, precision, torch.device(kind), SIZES).seconds
        for kind in ("cpu", "cuda")
        for precision in ("auto", "bf16-mixed")
    ]
    for part in ("classifier", "tokenize", "samples and measures"):
        assert len({seconds[part] for seconds in plans}) == 1, part
    assert plans[0]["generator"] > 10 * plans[-1]["generator"]


def test_a_compiler_that_does_not_work_is_left_out(configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("CppCompileError")

    monkeypatch.setattr(demo_plan, "timed_step", broken)
    assert demo_plan.timed_compiled(configs["generator"], "32-true", CPU) == float("inf")


@pytest.mark.slow
def test_a_compiled_step_is_timed(tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("there is no C++ compiler")
    token_cache(tmp_path)
    config = tiny("generator", tmp_path, "--define.cache", str(tmp_path / "tokens"))
    assert 0 < demo_plan.timed_compiled(config, "32-true", CPU) < 60


@pytest.mark.parametrize(
    ("seconds", "minutes", "share"),
    [(2.0, 12, FLOOR), (0.17, 12, 1.0), (0.2, 30, None), (0.001, 12, CEILING), (5.0, 0, 1.0)],
)
def test_floor_ceiling_and_the_recipe_itself(
    configs: dict[str, Any], machine: dict[str, float], tmp_path: Path, seconds: float, minutes: float, share: float
) -> None:
    machine |= dict.fromkeys(("32-true", "bf16-mixed"), seconds)
    plan = planned(tmp_path, configs, minutes, "32-true", CPU, SIZES)
    assert 1 < plan.share < CEILING if share is None else plan.share == share
    if share == FLOOR:
        assert sum(plan.seconds.values()) > 12 * 60


def test_a_second_start_does_what_the_first_one_began(
    configs: dict[str, Any], machine: dict[str, float], tmp_path: Path
) -> None:
    plan = planned(tmp_path, configs, None, "auto", CPU, SIZES)
    assert plan.minutes == 12
    machine |= dict.fromkeys(("32-true", "bf16-mixed"), 9.0)
    assert (
        planned(tmp_path, configs, None, "auto", CPU, SIZES)
        == plan
        == planned(tmp_path, configs, 12.0, "32-true", CPU, SIZES)
    )
    with pytest.raises(BadInput, match=r"is a demo with --minutes 12.0, not 5; give that, or name another --out"):
        planned(tmp_path, configs, 5, "auto", CPU, SIZES)
    with pytest.raises(BadInput, match="with --precision 32-true, not bf16-mixed"):
        planned(tmp_path, configs, None, "bf16-mixed", CPU, SIZES)
    with pytest.raises(BadInput, match="with --classifier-steps 400, not 5"):
        planned(tmp_path, configs, None, "auto", CPU, {**SIZES, "classifier_steps": 5})
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(BadInput, match=r"plan\.json cannot be read"):
        planned(tmp_path, configs, None, "auto", CPU, SIZES)
    (tmp_path / "old" / "stage1").mkdir(parents=True)  # of version 0.1, which knew no minutes
    assert planned(tmp_path / "old", configs, None, "auto", CPU, SIZES).share == 1


def test_cut_takes_whole_fifties(configs: dict[str, Any]) -> None:
    def steps(share: float) -> list[int]:
        phases = cut(copy.deepcopy(configs["stage1"]), share)["model"]["init_args"]["phases"]
        return [phase["steps"] for phase in phases.values()]

    assert (steps(1), steps(0.43), steps(0.001)) == ([250, 1450], [100, 600], [1, 1])


def test_real_steps_are_timed_without_files(configs: dict[str, Any]) -> None:
    for config in configs.values():
        small = copy.deepcopy(config)
        small["data"]["init_args"]["global_batch"] = 2
        before = copy.deepcopy(small)
        assert timed_step(small, "32-true", CPU) > 0
        assert small == before
    assert loading_seconds(configs["stage1"]) > 0 == loading_seconds(configs["generator"])


def test_left_is_unknown_for_another_part() -> None:
    assert Plan(None, "32-true", 1.0, {}, {}).left("stage1") is None

"""Layers over layers, and what is said of what they take away."""

from typing import Any

import pytest

from alitok.common import merge
from alitok.common.merge import Merged

FSQ = "alitok.ideas.fsq.FiniteScalarQuantizer"
VQ = "alitok.models.quantizer.ClusteredQuantizer"
LFQ = "alitok.ideas.lookup_free.LookupFreeQuantizer"


def block(name: str, **arguments: Any) -> dict[str, Any]:
    return {"model": {"quantizer": {"class_path": name, "init_args": arguments}}}


def lay(*layers: dict[str, Any]) -> dict[str, Any]:
    merged = Merged()
    for number, layer in enumerate(layers):
        merged.lay(layer, f"{number}.yaml", is_base=number == 0)
    return merged.config


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_said", set())


def test_a_class_that_another_overlay_set_is_not_replaced_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        lay(block(VQ), block(FSQ, levels=[8]), block(LFQ))
    assert capsys.readouterr().err.splitlines() == [
        f"alitok: 2.yaml replaces {FSQ}, which 1.yaml set as model.quantizer, by {LFQ}.",
        f"alitok: {LFQ} has no argument 'levels', so that model.quantizer.init_args.levels of 1.yaml is dropped.",
    ]


def test_an_idea_of_the_base_is_not_replaced_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    lay(block(FSQ), block(LFQ))
    assert capsys.readouterr().err.splitlines() == [
        f"alitok: 1.yaml replaces {FSQ}, which the base set as model.quantizer, by {LFQ}."
    ]


def test_what_the_base_set_may_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert lay(block(VQ, decay=0.5), block(FSQ)) == block(FSQ)
    assert lay(block(VQ), block(FSQ), block(FSQ, levels=[8])) == block(FSQ, levels=[8])
    assert capsys.readouterr().err == ""


def test_an_argument_that_an_overlay_set_is_not_dropped_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    merged = Merged()
    merged.lay(block(VQ, decay=0.5), "base.yaml", is_base=True)
    merged.lay({"model": {"quantizer": {"init_args": {"decay": 0.9, "code_dim": 3}}}}, "--model.quantizer.decay")
    merged.lay(block(FSQ), "--model.quantizer.class_path")
    assert "has no argument 'decay', so that model.quantizer.init_args.decay of --model.quantizer.decay is dropped" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_process_speaks(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    merge.say_once("twice")
    assert capsys.readouterr().err == ""

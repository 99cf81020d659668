"""The comparison with 0.1 notices what it should, and takes a change only with its reason."""

import re
from typing import Any

import kept_files
import pytest
import torch
from kept_files import HERE, TOLERANCE, differences, furthest, kept


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ({"a": 1, "b": [1.0, "x"]}, {"a": 1, "b": [1.0 + 1e-7, "x"]}, 0),
        ({"a": 1}, {"a": 1, "b": None}, 1),
        ({"a": 1, "b": None}, {"a": 1}, 1),
        ({"a": 1}, {"a": 2}, 1),
        ({"a": 1}, {"a": True}, 1),
        ({"a": 1.0}, {"a": 1.0001}, 1),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, 1),
        ({"phases": {"a": 1, "b": 2}}, {"phases": {"b": 2, "a": 1}}, 1),
        ({"class_path": "alitok.cli.run"}, {"class_path": "kept_files.alitok_run"}, 0),  # the same object
        ({"class_path": "alitok.cli.run"}, {"class_path": "alitok.cli.main"}, 1),
    ],
)
def test_differences(old: Any, new: Any, count: int) -> None:
    assert len(differences(old, new)) == count


def test_differences_below_a_floor() -> None:
    assert differences({"a": [1e-3]}, {"a": [1.0001e-3]})
    assert not differences({"a": [1e-3]}, {"a": [1.0001e-3]}, floor=1e-6)


def test_the_distance_of_weights_is_a_share_of_their_norm() -> None:
    old = {"a": torch.full((4,), 3.0), "b": torch.full((4,), 4.0)}
    assert furthest(old, {"a": old["a"], "b": old["b"]}) == 0
    assert furthest(old, {"a": old["a"] + 0.01, "b": old["b"]}) == pytest.approx(0.002, rel=1e-4)
    assert furthest(old, {"a": old["a"] + 0.01, "b": old["b"]}) > TOLERANCE


def test_a_change_needs_a_reason_and_reaches_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_files, "CHANGED", {"stacks/*demo*#a.b": {"value": 2, "why": "a reason"}})
    assert kept("stacks", "x demo y", {"a": {"b": 1, "c": 3}}) == {"a": {"b": 2, "c": 3}}
    assert kept("stacks", "other", {"a": {"b": 1}}) == {"a": {"b": 1}}
    monkeypatch.setattr(kept_files, "CHANGED", {"stacks/a": {"values": {"a.b": 2, "c": None}, "why": "a reason"}})
    assert kept("stacks", "a", {"a": {"b": 1}, "c": 3, "d": 4}) == {"a": {"b": 2}, "d": 4}
    monkeypatch.setattr(kept_files, "CHANGED", {"runs/a": {"file": "new", "why": "a reason"}})
    assert kept("runs", "a", HERE / "old") == HERE / "new"
    monkeypatch.setattr(kept_files, "CHANGED", {"runs/a": {"value": 1}})
    with pytest.raises(AssertionError, match="does not say why"):
        kept("runs", "a", 0)


def test_no_path_of_a_machine_is_in_the_files() -> None:
    texts = [path.read_text("utf-8") for path in HERE.rglob("*") if path.suffix in (".json", ".yaml")]
    assert len(texts) > 50
    assert not [found[0] for text in texts if (found := re.search(r"[\"'\s=]/[a-z]\w*/", text))]

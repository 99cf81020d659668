import fractions
import sys
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from alitok.common.build import (
    build,
    build_a,
    build_value,
    import_class,
    is_class_block,
    known_arguments,
    misfit,
    not_a,
)
from alitok.common.errors import BadInput


class Leaf:
    def __init__(self, size: int, scale: float = 1.0) -> None:
        self.size, self.scale = size, scale


class Branch(Leaf):
    def __init__(self, leaves: object, **rest: object) -> None:
        super().__init__(**rest)
        self.leaves = leaves


def block(name: str, **arguments) -> dict:
    return {"class_path": f"{__name__}.{name}", "init_args": arguments}


def test_nested_blocks_in_maps_and_lists():
    made = build(block("Branch", leaves=[block("Leaf", size=1), {"a": block("Leaf", size=2), "b": 3}]), size=4)
    assert made.size == 4
    assert made.leaves[0].size == 1
    assert made.leaves[1]["a"].size == 2
    assert made.leaves[1]["b"] == 3


def test_block_without_arguments():
    assert build({"class_path": "fractions.Fraction"}) == 0
    assert import_class("fractions.Fraction") is fractions.Fraction
    assert build_value((1, "two")) == [1, "two"]
    assert not is_class_block("class_path")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(BadInput, match=r"has no argument 'sise'; did you mean 'size'\?"):
        build(block("Leaf", sise=1))
    with pytest.raises(BadInput, match=r"has no argument 'scal'; did you mean 'scale'\?"):
        build(block("Branch", leaves=[], scal=1))


def test_missing_argument():
    with pytest.raises(BadInput, match="size"):
        build(block("Leaf"))


def test_unknown_class_names_the_nearest():
    with pytest.raises(BadInput, match=r"has no 'Leav'; did you mean 'Leaf'\?"):
        import_class(f"{__name__}.Leav")
    with pytest.raises(BadInput, match=r"'nowhere\.Thing' cannot be imported"):
        import_class("nowhere.Thing")
    with pytest.raises(BadInput, match="'Thing' cannot be imported"):
        import_class("Thing")


def test_arguments_of_parents_count_only_behind_kwargs():
    assert known_arguments(Branch) >= {"leaves", "size", "scale"}
    assert known_arguments(Leaf) == {"size", "scale"}


class Typed:
    def __init__(
        self,
        count: int = 0,
        rate: float | tuple[float, float] = 0.0,
        name: str | None = None,
        on: bool = False,
        kind: Literal["a", "b"] = "a",
        sizes: list[int] | None = None,
        weights: Mapping[str, float] | None = None,
        part: Leaf | None = None,
        anything: Any = None,
    ) -> None:
        if count < 0:
            raise ValueError("count is negative.")


class Inherited(Typed):
    def __init__(self, extra: int = 0, **rest: Any) -> None:
        super().__init__(**rest)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 3, "rate": 1, "name": "x", "on": True, "kind": "b", "sizes": [1, 2], "weights": {"a": 0.5}},
        {"rate": [1e-3, 1e-4], "sizes": [], "weights": {}, "part": {"class_path": "x"}, "anything": [True]},
        {"name": None, "part": "whatever", "unknown": 3},
    ],
)
def test_values_that_fit_their_hints(arguments):
    assert misfit(Typed, arguments) is None
    assert misfit(Inherited, arguments) is None


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", "3", "a whole number"),
        ("count", 3.5, "a whole number"),
        ("count", True, "a whole number"),
        ("rate", "fast", "a number or a list of 2"),
        ("rate", [1.0], "a number or a list of 2"),
        ("name", 3, "text"),
        ("on", 1, "true or false"),
        ("kind", "c", "a or b"),
        ("sizes", [1, "2"], "a list"),
        ("sizes", 1, "a list"),
        ("weights", {"a": "b"}, "a map"),
        ("weights", 1, "a map"),
    ],
)
def test_values_that_do_not_fit_are_named_with_what_is_wanted(name, value, wanted):
    assert misfit(Typed, {"on": True, name: value}) == (name, wanted)
    assert misfit(Inherited, {name: value}) == (name, wanted)


def test_what_a_constructor_refuses_is_bad_input():
    with pytest.raises(BadInput, match=r"Typed: count is negative\."):
        build(block("Typed", count=-1))


def test_a_block_without_a_class_is_refused():
    with pytest.raises(BadInput, match=r"has no class_path: \{'p': 0.3\}"):
        build({"p": 0.3})
    assert misfit(Typed, {"part": {"size": 3}}) == ("part", "a map with the class_path of a Leaf")
    with pytest.raises(BadInput, match="Typed: name must be text, not 8"):
        build({"class_path": f"{__name__}.Typed", "init_args": {"name": 8}})


@pytest.mark.parametrize("name", ["os.system", "os.environ", "sys.argv", "math.pi", "builtins.print", "os.path"])
def test_what_is_no_class_is_refused(name):
    with pytest.raises(BadInput, match=f"class_path '{name}' is no class"):
        import_class(name)


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        (Leaf, "Leaf"),
        (Leaf | None, "Leaf"),
        (Leaf | Typed, "Leaf or Typed"),
        (dict[str, Any], ""),
        (Any, ""),
        (str, ""),
    ],
)
def test_a_class_of_another_kind(hint, wrong):
    assert not_a(fractions.Fraction, hint) == wrong
    assert not_a(Branch, hint) == ""
    assert not_a(block, hint) == ""


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemError('x')", "import nowhere", "def"])
def test_a_module_that_cannot_be_imported_is_bad_input(text, tmp_path, monkeypatch):
    (tmp_path / "broken_idea.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(BadInput, match=r"'broken_idea\.Thing' cannot be imported: "):
        import_class("broken_idea.Thing")


def test_a_module_of_the_working_folder_hides_nothing_installed(tmp_path, monkeypatch):
    (tmp_path / "own_idea.py").write_text("class Thing: pass")
    (tmp_path / "colorsys.py").write_text("class Thing: pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    assert import_class("own_idea.Thing").__module__ == "own_idea"
    with pytest.raises(BadInput, match="colorsys has no 'Thing'"):
        import_class("colorsys.Thing")


def test_a_part_of_another_kind_is_refused_before_it_is_called():
    assert build_a(Leaf, block("Branch", leaves=[], size=1)).size == 1
    with pytest.raises(BadInput, match=r"Typed is no Leaf; name another class\."):
        build_a(Leaf, block("Typed", count=-1))

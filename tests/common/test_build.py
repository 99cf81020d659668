import fractions

import pytest

from alitok.common.build import build, build_value, import_class, is_class_block, known_arguments
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

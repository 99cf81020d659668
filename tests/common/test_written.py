"""One text, read by the type of the argument that it goes to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from alitok.common.errors import BadInput
from alitok.common.written import Written, meant, read_written, takes_text
from alitok.config import parse_overrides


def written(text: str) -> Written:
    ((_, value),) = parse_overrides(["--key", text])
    assert value is not None
    return value


class Part:
    pass


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("010", int, 8),
        ("1_0", int, 10),
        ("1e-4", float, 1e-4),
        ("3", float, 3),
        ("no", bool, False),
        ("1e5", int | None, 100000.0),  # refused by `misfit`, as a number is
        ("[1, 0x10]", list[int], [1, 16]),
        ("no", Literal["yes", "no"], "no"),
        ("32", Literal[64, 32] | Literal["64", "32"] | None, 32),
        ("16-true", Literal["16-true"] | None, "16-true"),
        ("010", str, "010"),
        ("010", str | None, "010"),
        ("010", Path | None, "010"),
        ("[0, 1]", list[int] | str | int, [0, 1]),
        ("2", list[int] | str | int, 2),
        ("010", list[int] | str | int, "010"),
        ("true", bool | str, True),
        ("no", bool | str, "no"),
        ("{class_path: a.B}", str | Part, {"class_path": "a.B"}),
        ("{a: b}", str | Part, "{a: b}"),
        ("a: 1", dict[str, int], {"a": 1}),
        ("a: 1", Mapping[str, int], {"a": 1}),
        ("a: 1", str, "a: 1"),
        ("010", None, 8),
        ("010", Any, 8),
        ("pets #2", Any, "pets #2"),
        ("'010'", Any, "010"),
        ("~", str | None, "~"),
    ],
)
def test_a_text_is_read_by_the_type_of_its_argument(text: str, hint: Any, value: Any) -> None:
    config = read_written({"a": written(text)}, {"a": hint}, lambda *_: {})
    expected = str(Path.home()) if value == "~" else value
    assert (config["a"], type(config["a"])) == (expected, type(expected))


def test_items_of_lists_and_maps_are_read_by_their_own_types() -> None:
    for text, hint, value in (
        ("[010, no]", list[str], ["010", "no"]),
        ("[010, no]", tuple[int, str], [8, "no"]),
        ("{a: 010}", dict[str, str], {"a": "010"}),
        ("{a: [010]}", dict[str, list[str]], {"a": ["010"]}),
    ):
        assert read_written({"a": written(text)}, {"a": hint}, lambda *_: {}) == {"a": value}


@pytest.mark.parametrize("hint", [int, float | None, bool, list[int], dict[str, int], Any])
def test_what_is_no_yaml_is_refused_unless_it_is_a_text(hint: Any) -> None:
    with pytest.raises(BadInput, match=r"Override --key: '\[1' is no valid YAML value"):
        meant(written("[1"), hint)
    assert meant(written("[1"), str) == "[1"
    assert not takes_text(hint)


def test_a_shared_value_has_the_types_of_the_places_that_it_goes_to() -> None:
    top = {"text": str, "number": int, "texts": list[str], "free": Any}
    use = {
        "text": "${define.a}",
        "define": {name: Written("010", 8, name) for name in "abcdefg"},
        "number": "${define.b}",
        "texts": ["${define.c}/x", "x-${define.h}"],
        "free": {"one": "${define.d}", "two": ["${define.b}"], "three": "${add:${define.f},1}"},
    }
    use["define"] |= {"h": "${define.e}", "g": Written("010", 8)}
    define = read_written(use, top, lambda *_: {})["define"]
    assert define == {"a": "010", "b": 8, "c": "010", "d": 8, "e": "010", "f": 8, "g": 8, "h": "${define.e}"}
    both = {"define": {"a": Written("010", 8)}, "text": "${define.a}", "number": "${define.a}"}
    assert read_written(both, top, lambda *_: {})["define"] == {"a": 8}  # the strictest
    unused = {"define": {"a": Written("010", 8, "define.a")}}
    assert read_written(unused, top, lambda *_: {}) == {"define": {"a": "010"}}


def test_references_in_a_circle_end() -> None:
    circle = {"define": {"a": "${define.b}", "b": "${define.a}"}}
    assert read_written(circle, {}, lambda *_: {}) == circle

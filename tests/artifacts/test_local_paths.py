"""Which texts hold a path of this machine, and what is left of it."""

import pytest

from alitok.artifacts.local_paths import has_path, texts, without_folders


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/jane/tokens", "tokens"),
        ("in /home/jane/tokens; val: /x/y and /z/w", "in tokens; val: y and w"),
        ("~/data", "data"),
        ("~jane/data", "data"),
        ("../../jane/data", "data"),
        ("file:///home/jane/data", "data"),
        ("spec:/home/jane/data", "spec:data"),
        ("(/home/Jane Doe/data)", "(data)"),
        (r"C:\jane\data", "data"),
        ("/home/jane/", "jane/"),
    ],
)
def test_the_name_alone_stays(text: str, left: str) -> None:
    assert has_path(text)
    assert without_folders({"a": [text, 1]}) == {"a": [left, 1]}


@pytest.mark.parametrize(
    "text",
    ["https://hub.example/owner/name", "owner/name", "1 / 2", "and/or", "alitok.models.Tokenizer", "images/s", "/"],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert not has_path(text)
    assert without_folders(text) == text


def test_texts_by_key() -> None:
    assert list(texts({"a": {"b": ["x", 2, "y"]}, "c": "z"})) == [("a.b.0", "x"), ("a.b.2", "y"), ("c", "z")]

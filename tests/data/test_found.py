from collections import Counter

import numpy as np
import pytest

from alitok.common import distributed
from alitok.data import found
from alitok.data.found import Found, PassedOver, announce, ending_notes, label_notes
from alitok.data.sources import open_source


def test_two_lines(capsys):
    train, val = (open_source("shapes", split, count=count) for split, count in (("train", 1200), ("val", 3)))
    announce("shapes", {"train": train, "val": val})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Data shapes: drawn shapes; images: 1,200 of train, 3 of val; 10 classes: circle, square,")
    assert first.endswith(", cross and 4 more.")
    assert second == "Passed over or guessed: nothing."
    lines = list(Found("x", {"val": val}, PassedOver("folder b", 1, "why"), PassedOver("files", 1200, "so")).lines())
    assert lines[1] == "Passed over or guessed: folder b: why; files (1,200): so."


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setattr(found, "rank", lambda: 1)
    announce("shapes", {"train": open_source("shapes", count=3)})
    assert capsys.readouterr().out == ""
    assert distributed.rank() == 0


def test_the_same_note_of_both_splits_is_said_once(tmp_path):
    shapes = open_source("shapes", count=3)
    shapes.origin = shapes.origin.noting(PassedOver("a", 1, "b"))
    assert len(Found("shapes", {"train": shapes, "val": shapes}).passed_over) == 1


@pytest.mark.parametrize(
    ("labels", "classes", "train", "expected"),
    [
        ([0, 1, 1], 2, True, []),
        ([0, 2, 2], 3, True, ["number 1 of 0 to 2; sampling draws them all the same"]),
        ([0, 2, 2], 3, False, ["number 1 of 0 to 2; validation cannot measure them"]),
        ([0, 1, 2], 3, False, []),
        ([0, 1, 2], 3, True, ["there are as many classes as pictures, as if a row's number were its label"]),
        ([0, 2, 2], ["cat", "dog", "eel"], False, ["dog; validation cannot measure them"]),
        (list(range(0, 20, 2)) * 2, 20, True, ["numbers 1, 3, 5, 7, 9, 11, ... of 0 to 19; sampling"]),
    ],
)
def test_labels_that_are_odd(labels, classes, train, expected):
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    notes = label_notes(np.array(labels), names, train)
    assert [note.why[: len(why)] for note, why in zip(notes, expected, strict=True)] == expected


def test_files_by_ending():
    assert ending_notes(Counter(), ()) == []
    (note,) = ending_notes(Counter({".txt": 3, "": 1}), (".png",))
    assert str(note) == "files that are no pictures [.txt 3, no ending 1] (4): their names do not end in one of .png"

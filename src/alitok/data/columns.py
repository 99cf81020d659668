"""Finds the image and label columns of a table, and reads its labels."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from alitok.common.errors import BadInput
from alitok.data.found import PassedOver, label_notes

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "class_id")
MOST_CLASSES = 1_000_000


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return binary or isinstance(feature, datasets.Image)


def _is_text(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def label_kind(feature: Any) -> str | tuple[str, ...] | None:
    """The kind of a column's labels: names of classes, "integers" or "words"; None if it cannot contain labels."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names or ()) or "integers"
    if not isinstance(feature, datasets.Value):
        return None
    if re.fullmatch(r"u?int\d+", feature.dtype):
        return "integers"
    return "words" if _is_text(feature) or feature.dtype == "bool" else None


def choose_columns(features: Any, image: str | None, label: str | None, name: str) -> tuple[str, str, list[PassedOver]]:
    """The image and the label column, as given or found, and notes on what was guessed.

    The image column is the only one with an image type. The label column has class labels, or a label's name and
    integers or words. If there is none, it is the only column of integers, which is a guess.

    Raises:
        BadInput: there is no such column, a choice of several, or a given column that holds something else.
    """
    images = [column for column in features if _is_image(features[column])]
    chosen = _given_or_only(features, image, images, "image", name)
    if chosen not in images and not _is_text(features[chosen]):
        raise BadInput(
            f"The column {chosen!r} of {name} holds {_content(features[chosen])}, not pictures or their paths; "
            "name a column of pictures with image_column."
        )
    return chosen, *choose_label(features, label, name)


def choose_label(features: Any, label: str | None, name: str) -> tuple[str, list[PassedOver]]:
    """The label column as in `choose_columns`, and notes on what was guessed."""
    kinds = {column: label_kind(features[column]) for column in features}
    usual = [column for column in features if column.lower() in LABEL_NAMES]
    named = [column for column in usual if kinds[column] is not None]
    named = [column for column in named if kinds[column] != "words"] or named  # words may only spell the number out
    classes = [column for column in features if isinstance(kinds[column], tuple)]
    fitting = list(dict.fromkeys([*named, *classes]))
    if len(both := [column for column in named if column in classes]) == 1:
        fitting = both
    notes = []
    if label is None and not fitting:
        # a column with a label's name that cannot contain labels is refused below, not ignored
        fitting = usual or [column for column in features if kinds[column] == "integers"]
        if len(fitting) == 1 and not usual:
            why = "taken for the label, because no other column can be one; label_column names another"
            notes.append(PassedOver(f"column {fitting[0]}", 1, why))
    chosen = _given_or_only(features, label, fitting, "label", name)
    if kinds[chosen] is None:
        raise BadInput(
            f"The column {chosen!r} of {name} holds {_content(features[chosen])}, not integers or words; "
            "name a column of labels with label_column."
        )
    return chosen, notes


def _given_or_only(features: Any, given: str | None, fitting: Sequence[str], what: str, name: str) -> str:
    columns = ", ".join(features)
    if given is not None:
        if given not in features:
            raise BadInput(f"{name} has no column {given!r}; its columns are {columns}.")
        return given
    if len(fitting) != 1:
        found = "none" if not fitting else "several: " + ", ".join(fitting)
        raise BadInput(
            f"{name} needs one {what} column and has {found} (columns: {columns}); name it with {what}_column."
        )
    return fitting[0]


def _content(feature: Any) -> str:
    """A column's type in one word: "list", "float64", ..."""
    return str(getattr(feature, "dtype", None) or type(feature).__name__).lower()


def check_same(files: Sequence[str], features: Sequence[Any], image: str, label: str) -> None:
    """Checks that all files of a split have the first file's columns and kind of labels, which would be used for all.

    Raises:
        BadInput: a file lacks a column, or differs in classes or kind of label.
    """
    first = features[0]
    for file, other in zip(files[1:], features[1:], strict=True):
        if missing := [column for column in (image, label) if column not in other]:
            raise BadInput(f"{file} has no column {missing[0]!r}, which {files[0]} has; write them with one schema.")
        kinds = [label_kind(found[label]) for found in (first, other)]
        if kinds[0] != kinds[1]:
            words = [", ".join(kind) if isinstance(kind, tuple) else kind or "no labels" for kind in kinds]
            raise BadInput(
                f"Column {label!r} is {words[0]} in {files[0]}, but {words[1]} in {file}; write all with one schema."
            )


def read_labels(
    column: Any, feature: Any, classes: list[str] | None, name: str, guessed: Sequence[PassedOver] = ()
) -> tuple[list[str], np.ndarray, list[PassedOver]]:
    """Classes, labels (rows,) int64 and notes on odd labels, from a column of numbers or words.

    Args:
        column: a pyarrow column.
        classes: classes of the training split; None = from the column.
        guessed: notes on what `choose_label` guessed.

    Raises:
        BadInput: a row's label is missing or unknown, or a guessed column has a different number in every row.
    """
    if column.null_count:
        raise BadInput(f"{name} has {column.null_count:,} rows without a label.")
    values = column.to_numpy()
    train = classes is None
    if values.dtype.kind not in "iu":
        classes, labels = _from_words(values.astype(str), classes, name)
    else:
        classes, labels = _from_integers(values, feature, classes, name)
    notes = label_notes(labels, classes, train)
    if train and guessed and 1 < len(labels) == len(np.unique(labels)):
        raise BadInput(
            f"{name} has no column with a label's name ({', '.join(LABEL_NAMES)}), and {guessed[0].what} holds another "
            "number in every row; name the column of labels with label_column."
        )
    return classes, labels, [*guessed, *notes]


def _from_words(words: np.ndarray, classes: list[str] | None, name: str) -> tuple[list[str], np.ndarray]:
    classes = sorted(set(words)) if classes is None else classes
    numbers = {word: number for number, word in enumerate(classes)}
    if strangers := sorted(set(words) - set(numbers)):
        raise BadInput(f"{name} has a class {strangers[0]!r} that the training split does not have.")
    return classes, np.array([numbers[word] for word in words], dtype=np.int64)


def _from_integers(
    values: np.ndarray, feature: Any, classes: list[str] | None, name: str
) -> tuple[list[str], np.ndarray]:
    least, most = int(values.min()), int(values.max())
    if least < 0:
        raise BadInput(f"{name} has images without a class (label {least}); use a labeled split.")
    if classes is None:
        named = getattr(feature, "names", None)
        if not named and most >= MOST_CLASSES:
            raise BadInput(
                f"{name} has the label {most}, no number of a class; number the classes from 0, or use words."
            )
        classes = list(named or map(str, range(most + 1)))
    if most >= len(classes):
        raise BadInput(f"{name} has the label {most}, but there are only {len(classes)} classes.")
    return classes, values.astype(np.int64)

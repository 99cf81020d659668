"""Which columns of a table hold image and label, and what its labels are."""

from collections.abc import Callable
from typing import Any

import numpy as np

from alitok.common.errors import BadInput

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "class_id")


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return binary or isinstance(feature, datasets.Image)


def _is_label(feature: Any) -> bool:
    import datasets

    integer = isinstance(feature, datasets.Value) and "int" in feature.dtype
    return integer or isinstance(feature, datasets.ClassLabel)


def _choose(features: Any, given: str | None, what: str, fits: Callable[[Any], bool], name: str) -> str:
    """The column given, or the only one of the right type; among labels, class labels and usual names go first."""
    columns = list(features)
    if given is not None:
        if given not in columns:
            raise BadInput(f"{name} has no column {given!r}; its columns are {', '.join(columns)}.")
        return given
    fitting = [column for column in columns if fits(features[column])]
    if what == "label" and len(fitting) > 1:
        named = [column for column in fitting if hasattr(features[column], "names")]
        usual = [column for column in fitting if column.lower() in LABEL_NAMES]
        fitting = named or usual or fitting
    if len(fitting) != 1:
        found = "none" if not fitting else "several: " + ", ".join(fitting)
        raise BadInput(
            f"{name} needs one {what} column and has {found} (columns: {', '.join(columns)}); "
            f"name it with {what}_column."
        )
    return fitting[0]


def choose_columns(features: Any, image: str | None, label: str | None, name: str) -> tuple[str, str]:
    """The image and the label column: as given, or found by type.

    Raises:
        BadInput: there is none, or a choice.
    """
    return _choose(features, image, "image", _is_image, name), choose_label(features, label, name)


def choose_label(features: Any, label: str | None, name: str) -> str:
    """The label column, as `choose_columns` finds it."""
    return _choose(features, label, "label", _is_label, name)


def read_labels(column: Any, feature: Any, classes: list[str] | None, name: str) -> tuple[list[str], np.ndarray]:
    """Classes and labels (rows,) int64 of a column of numbers or words.

    Args:
        column: a pyarrow column.
        classes: of the training split, None = from the column.

    Raises:
        BadInput: rows without a label, or with an unknown one.
    """
    if column.null_count:
        raise BadInput(f"{name} has {column.null_count:,} rows without a label.")
    labels = column.to_numpy()
    if labels.dtype.kind not in "iu":
        words = labels.astype(str)
        classes = sorted(set(words)) if classes is None else classes
        numbers = {word: number for number, word in enumerate(classes)}
        strangers = sorted(set(words) - set(numbers))
        if strangers:
            raise BadInput(f"{name} has a class {strangers[0]!r} that the training split does not have.")
        return classes, np.array([numbers[word] for word in words], dtype=np.int64)
    if labels.min() < 0:
        raise BadInput(f"{name} has images without a class (label {labels.min()}); use a labelled split.")
    if classes is None:
        classes = list(getattr(feature, "names", None) or map(str, range(int(labels.max()) + 1)))
    if labels.max() >= len(classes):
        raise BadInput(f"{name} has the label {labels.max()}, but there are only {len(classes)} classes.")
    return classes, labels.astype(np.int64)

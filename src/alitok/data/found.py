"""How a data spec was understood: layout, splits, classes, columns, and what was passed over and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from alitok.common.distributed import rank

SHOWN = 6  # most classes, file endings or ranges of numbers in a sentence


@dataclass(frozen=True)
class PassedOver:
    """Something that was skipped, guessed or set aside: what, how many, and why."""

    what: str
    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.what}{f' ({self.count:,})' if self.count > 1 else ''}: {self.why}"


@dataclass(frozen=True)
class Origin:
    """How a source was found.

    Attributes:
        layout: form of the data set.
        split: the data set's own name of the split; "" if it has no splits.
        columns: {"image": ..., "label": ...} for a table.
        beside: split that is read only if the user names it -> why.
        passed_over: what is not read, or was guessed.
        parts: what is set aside on purpose: a share held out, or images beyond a count.
    """

    layout: str
    split: str = ""
    columns: dict[str, str] | None = None
    beside: Mapping[str, PassedOver] = field(default_factory=dict)
    passed_over: tuple[PassedOver, ...] = ()
    parts: tuple[PassedOver, ...] = ()

    def noting(self, *more: PassedOver) -> "Origin":
        return replace(self, passed_over=(*self.passed_over, *more))


class Described(Protocol):
    """A list of images whose pixels need not be read."""

    origin: Origin
    class_names: list[str]

    def __len__(self) -> int: ...

    def class_labels(self) -> np.ndarray:
        """(images,) int64; may have to read them first."""
        ...


class Found:
    """How a data spec was understood, from its opened sources.

    Args:
        spec: the data spec.
        sources: "train" and "val", or one of them.
        more: other notes.

    Attributes:
        notes: what is not read, or was guessed.
        passed_over: the notes, and what is set aside on purpose.
    """

    def __init__(self, spec: str, sources: Mapping[str, Described], *more: PassedOver) -> None:
        origins = [source.origin for source in sources.values()]
        read = {origin.split for origin in origins}
        notes = [note for origin in origins for name, note in origin.beside.items() if name not in read]
        notes += [note for origin in origins for note in origin.passed_over]
        self.notes = list(dict.fromkeys([*notes, *more]))
        self.passed_over = list(dict.fromkeys([*self.notes, *(part for origin in origins for part in origin.parts)]))
        self.spec, self.layout, self.columns = spec, origins[0].layout, origins[0].columns
        self.splits = {name: len(source) for name, source in sources.items()}
        self._first = next(iter(sources.values()))
        self.class_names = self._first.class_names

    def lines(self) -> Iterator[str]:
        """Two lines for the log: what is read, and what is not."""
        counts = ", ".join(f"{count:,} of {name}" for name, count in self.splits.items())
        more = len(self.class_names) - SHOWN
        names = ", ".join(self.class_names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        columns = "" if self.columns is None else "; columns {image} and {label}".format(**self.columns)
        line = (
            f"Data {self.spec}: {self.layout}; images: {counts}; {len(self.class_names):,} classes: {names}{columns}."
        )
        yield printable(line)
        yield printable(f"Passed over or guessed: {'; '.join(map(str, self.passed_over)) or 'nothing'}.")

    def record(self) -> dict[str, Any]:
        """The JSON form; reads all labels of training."""
        counts = np.bincount(self._first.class_labels(), minlength=len(self.class_names))
        return {
            "layout": self.layout,
            "splits": self.splits,
            "classes": dict(zip(self.class_names, counts.tolist(), strict=True)),
            "columns": self.columns,
            "passed_over": [asdict(note) for note in self.passed_over],
        }


def announce(spec: str, sources: Mapping[str, Described], *more: PassedOver) -> None:
    """Prints the two lines of `Found` on the first process."""
    if rank() == 0:
        for line in Found(spec, sources, *more).lines():
            print(line, flush=True)


def printable(text: str) -> str:
    """Text in which bytes of file names that are not UTF-8 are written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def label_notes(labels: np.ndarray, names: Sequence[str], train: bool) -> list[PassedOver]:
    """Notes on odd labels (images,): classes without a picture; in training, as many classes as pictures."""
    classes = len(names)
    counts = np.bincount(labels, minlength=classes)
    empty = np.flatnonzero(counts == 0)
    notes = []
    if len(empty):
        drawn = "sampling draws them all the same" if train else "validation cannot measure them"
        which = f"number{'s' * (len(empty) > 1)} {_ranges(empty)} of 0 to {classes - 1}"
        if len(empty) <= SHOWN and any(names[number] != str(number) for number in empty.tolist()):
            which = ", ".join(names[number] for number in empty.tolist())
        notes.append(PassedOver("classes without a picture", len(empty), f"{which}; {drawn}"))
    if train and 1 < len(labels) == classes - len(empty):
        why = "there are as many classes as pictures, as if a row's number were its label"
        notes.append(PassedOver("classes of one picture", len(labels), why))
    return notes


def ending_notes(endings: Counter[str], known: Sequence[str]) -> list[PassedOver]:
    """Notes on files that are not read because of the endings of their names."""
    if not endings:
        return []
    kinds = ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in endings.most_common(SHOWN))
    more = ", ..." * (len(endings) > SHOWN)
    why = f"their names do not end in one of {', '.join(known)}"
    return [PassedOver(f"files that are no pictures [{kinds}{more}]", endings.total(), why)]


def _ranges(numbers: np.ndarray) -> str:
    """ "0, 3-5" of ascending numbers."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:SHOWN]]
    return ", ".join(words) + ", ..." * (len(runs) > SHOWN)

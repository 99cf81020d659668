"""Work on disk that survives a kill: settings that must agree, pieces written whole, and a list of missing pieces.

Token caches, pairs, sets of samples, guidance searches and ladders are made this way.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alitok.common.distributed import all_or_none, rank, world_size
from alitok.common.errors import BadInput
from alitok.common.files import write_json

T = TypeVar("T")
# How `common.files` names unfinished files: a dot, the name, eight characters of `tempfile`, the suffix.
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}(\.[a-z0-9]+)?")


class Work:
    """A folder that collects the pieces of one job, over any number of starts and processes.

    Args:
        folder: the folder of the pieces.
        settings: JSON values that decide the pieces.
        what: the folder's name in messages, e.g. "an unfinished token cache".
        record: path of the settings in the folder.
        free: keys that may differ between two starts, at the top or one level below.
        called: key -> its name in messages.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        what: str,
        record: str = "settings.json",
        free: Sequence[str] = (),
        called: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.settings, self.what = folder, dict(settings), what
        self.record, self.free, self.called = folder / record, free, called or {}

    def held(self) -> dict[str, Any] | None:
        """The settings of an earlier start; None if there are none or they cannot be read."""
        return read_settings(self.record)

    def pieces(self) -> list[Path]:
        """The paths in the folder, except for the settings and the unfinished files of a killed process."""
        if not self.folder.is_dir():
            return [self.folder] if self.folder.exists() else []
        own = self.record.relative_to(self.folder).parts[0]
        leftovers = self._leftovers()
        return [path for path in self.folder.iterdir() if path.name != own and path not in leftovers]

    def _leftovers(self) -> list[Path]:
        """What `atomic_file` and `atomic_folder` leave if they are killed, but not other programs' dot files."""
        known = f".{self.record.name}." if self.held() is None else "."  # without a record only its own leftovers
        folders = {self.folder, self.record.parent}
        found = [path for folder in folders if folder.is_dir() for path in folder.glob(".*")]
        return [path for path in found if path.name.startswith(known) and LEFTOVER.fullmatch(path.name)]

    def begin(self) -> None:
        """Makes the folder, or resumes an earlier start. For one process, which must be alone in the folder.

        Settings without pieces are replaced by the new ones.

        Raises:
            BadInput: the folder cannot be written, has pieces of other settings, or contains something else.
        """
        held = self.held()
        other = difference(held, self.settings, self.free, self.called)
        foreign = held is None or not held.keys() & self.settings.keys()
        if other and (self.pieces() or (foreign and self.record.exists())):
            if foreign:
                raise BadInput(f"{self.folder} is in the way: it is not {self.what}. Rename it, or name another --out.")
            raise BadInput(
                f"{self.folder} is {self.what} with other settings ({other}). Give the same arguments as before,"
                " remove it, or name another --out."
            )
        for path in self._leftovers():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if other:
            own = self.folder / self.record.relative_to(self.folder).parts[0]
            shutil.rmtree(own) if own.is_dir() else own.unlink(missing_ok=True)
            write_json(self.record, self.settings)

    def share(self, pending: Callable[[], Sequence[T]], begin: Callable[[], None] | None = None) -> list[T]:
        """Begins the work, and returns this process's share of the pending items. A collective.

        Args:
            pending: returns the missing items, the same on every process.
            begin: replaces `begin`.

        Raises:
            BadInput: as `begin`, on every process.
        """
        with all_or_none():
            if rank() == 0:
                (begin or self.begin)()
        with all_or_none():  # every process lists what is pending before one writes
            return list(pending())[rank() :: world_size()]


def run_name(run: range) -> str:
    """The stem of the file for a run of consecutive indices."""
    return f"{run.start:08d}-{run.stop:08d}"


def run_files(folder: Path, suffix: str) -> list[tuple[range, Path]]:
    """The files of runs in a folder, in order."""
    return [(range(*map(int, file.stem.split("-"))), file) for file in sorted(folder.glob(f"[0-9]*-*{suffix}"))]


def once(files: Iterable[tuple[range, Path]]) -> Iterator[tuple[Path, int]]:
    """(file, rows to skip), so that every index comes once even if two commands made it at the same time."""
    place = 0
    for run, file in files:
        if run.stop > place:
            yield file, place - run.start
            place = run.stop


def missing_runs(made: Iterable[int], count: int, size: int) -> list[range]:
    """The indices 0..count-1 not in `made`, as runs of at most `size` consecutive ones."""
    absent = np.setdiff1d(np.arange(count), np.fromiter(made, np.int64))
    runs = np.split(absent, np.flatnonzero(np.diff(absent) != 1) + 1) if len(absent) else []
    return [
        range(start, min(start + size, int(run[-1]) + 1))
        for run in runs
        for start in range(int(run[0]), int(run[-1]) + 1, size)
    ]


def read_settings(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it cannot be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def difference(
    held: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    free: Sequence[str] = (),
    called: Mapping[str, str] | None = None,
) -> str:
    """The first setting that differs, in words; "" if there is none. See `Work` for the arguments."""
    if held is None:
        return "unknown"
    for key in [*settings, *held]:
        old, new = (_without(side.get(key), free) for side in (held, settings))
        if old != new and key not in free:
            return f"{(called or {}).get(key, key)} {_short(old)}, not {_short(new)}"
    return ""


def _without(value: Any, free: Sequence[str]) -> Any:
    return {key: item for key, item in value.items() if key not in free} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)  # 64: a digest
    return text if len(text) < 40 else f"{text[:36]}..."

"""Files that are whole or absent, digests, and the places of published weight files."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alitok.common.errors import BadInput, first_line

# Read once: reading sets it, which another thread could see.
UMASK = os.umask(0)
os.umask(UMASK)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, and moves it over `path` if the block ends without an error.

    A link stays, and the file to which it leads is replaced.

    Raises BadInput if the folder cannot be written.
    """
    suffix, path = Path(path).suffix, renamable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix)
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error.strerror or error}.") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)  # mkstemp's files are private; a user's output is not
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def renamable(path: str | Path) -> Path:
    """The path of a folder onto which another can be renamed: the target of a link, and `.` or `..` by its name.

    Raises BadInput if links lead back to themselves.
    """
    path = Path(path)
    if not path.is_symlink() and path.name not in ("", ".."):
        return path  # as it was given, for messages
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise BadInput(f"Cannot write {path}: {first_line(error)}; name another folder.") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder next to `path`, which replaces `path` if the block ends without an error.

    A link stays, and the folder to which it leads is replaced.

    Raises BadInput if the parent folder cannot be written.
    """
    path = renamable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error.strerror or error}.") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~UMASK)
        aside = temporary.with_name(f"{temporary.name}.old")
        if path.exists():
            path.replace(aside)  # removing takes time, and may fail half-way
        try:
            temporary.replace(path)
        except OSError:
            if aside.exists():
                aside.replace(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON, whole or not at all.

    Raises:
        BadInput: the folder cannot be written.
        ValueError: a number is not finite; JSON has no such numbers.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def check_readable_name(path: str | Path) -> None:
    """Refuses a path that is not UTF-8: libraries that read weights, tables and logs cannot open it.

    Raises:
        BadInput: the path is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"Cannot write {path}: the name is no valid UTF-8; name another folder.") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8, whole or not at all. Bytes of file names that are not UTF-8 become escapes (`\\udce9`).

    Raises:
        BadInput: the folder cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power failure could leave an empty file under the name


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_checkpoints() -> Path:
    """The folder where torch.hub and torchvision keep weight files: $TORCH_HOME/hub/checkpoints."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


def find_weights(name: str, given: str | Path | None, folder: Path, origin: str, elsewhere: str = "") -> Path:
    """The path of a published weight file: `given` if it is not None, else `folder / name`.

    Args:
        name: file name as published.
        given: the user's path: the file, or a folder that contains it.
        folder: the usual cache folder.
        origin: address of the file, for the message.
        elsewhere: how to choose another place, for the message.

    Raises:
        BadInput: the file is missing. The message has its name, the place searched and its address.
    """
    path = folder / name if given is None else Path(os.path.expanduser(given))
    if path.is_dir():
        path = path / name
    if not path.is_file():
        raise BadInput(
            f"Missing weight file {name}: looked for {path}; download it from {origin} and put it there"
            f"{', or ' * bool(elsewhere)}{elsewhere}."
        )
    return path


def experiments_folder() -> Path:
    """The folder of the YAML files that ship with the project: in the repository, or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parents[1] / "experiments"


def no_room(error: BaseException) -> bool:
    """Whether an error comes from a disk that takes no more files, so that further work is lost too."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def check_writable(path: Path) -> None:
    """Checks, before long work, that its result can be written to a file. Writes nothing.

    Raises:
        BadInput: the path is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise BadInput(f"Cannot write {path}: it is a folder; name a file.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInput(f"Cannot write {path}: {nearest} is no folder that can be written; name another file.")

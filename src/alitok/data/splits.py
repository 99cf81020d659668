"""Names of splits: the one list that folders, table files and data sets of the hub are read by."""

from collections.abc import Iterable
from typing import Literal

from alitok.data.found import PassedOver

Role = Literal["train", "val", "test"]

NAMES: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}


def role_of(name: str) -> Role | None:
    """What a folder or split of this name is for, in capitals or not; None if it is no name of a split."""
    return next((role for role, names in NAMES.items() if name.lower() in names), None)


def role_of_file(name: str) -> Role | None:
    """The same for a name that begins with one of them, as train-00000-of-00042.parquet does."""
    return next((role for role in NAMES if name.lower().startswith(role)), None)


def pick(names: Iterable[str], *roles: Role) -> str | None:
    """The name that serves as the first of these roles that is there; None if there is none."""
    known = {name.lower(): name for name in sorted(names)}  # of train and Train, train
    return next((known[name] for role in roles for name in NAMES[role] if name in known), None)


def beside(names: Iterable[str], train: str | None, validation: str | None, what: str) -> dict[str, PassedOver]:
    """Why each of these splits or folders (`what`) is not read, if `train` and `validation` are."""
    notes = {}
    for name in sorted(set(names) - {train, validation}):
        if (role := role_of(name)) is None:
            why = f"its name is no known split ({', '.join(known for names in NAMES.values() for known in names)})"
        else:
            used = train if role == "train" else validation
            why = "it has no pictures in class folders" if used is None else f"{used} is read in its place"
        notes[name] = PassedOver(f"{what} {name}", 1, why)
    return notes

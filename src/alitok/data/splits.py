"""Names of splits, the same for folders, table files and data sets of the hub."""

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
    """The role of a folder or split with this name, ignoring case; None if it is not the name of a split."""
    return next((role for role, names in NAMES.items() if name.lower() in names), None)


def role_of_file(name: str) -> Role | None:
    """The same for a name that begins with a split's name, such as train-00000-of-00042.parquet."""
    return next((role for role in NAMES if name.lower().startswith(role)), None)


def pick(names: Iterable[str], *roles: Role) -> str | None:
    """The name for the first of the roles that has one; None if no role has."""
    known = {name.lower(): name for name in sorted(names)}  # if train and Train exist: train
    return next((known[name] for role in roles for name in NAMES[role] if name in known), None)


def beside(names: Iterable[str], train: str | None, validation: str | None, what: str) -> dict[str, PassedOver]:
    """Why each of these splits or folders (`what`) is not read, except for `train` and `validation`."""
    notes = {}
    for name in sorted(set(names) - {train, validation}):
        if (role := role_of(name)) is None:
            why = f"its name is no known split ({', '.join(known for names in NAMES.values() for known in names)})"
        else:
            used = train if role == "train" else validation
            why = "it has no pictures in class folders" if used is None else f"{used} is read in its place"
        notes[name] = PassedOver(f"{what} {name}", 1, why)
    return notes

import pytest

from alitok.data.splits import NAMES, beside, pick, role_of, role_of_file


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names])
def test_every_name_of_a_split_is_known_to_folders_and_files(role, name):
    assert role_of(name) == role_of(name.capitalize()) == role
    assert role_of_file(f"{name}-00000-of-00042.parquet") == role
    assert pick(["extra", name], "train", "val", "test") == name


def test_what_goes_first():
    assert pick(["test", "valid", "validation"], "val", "test") == "validation"
    assert pick(["Train", "train"], "train") == "train"
    assert pick(["test"], "val") is None
    notes = beside(["train", "valid", "test", "extra"], "train", "valid", "folder")
    assert notes["test"].why == "valid is read in its place"
    assert "no known split" in notes["extra"].why
    assert len(notes) == 2

import os

import pytest

from alitok.common.errors import BadInput
from alitok.data.listing import Listing, has_pictures, image_files, loose_notes, subfolders


@pytest.fixture
def folder(tmp_path):
    """A class folder `data/a` and, elsewhere, a folder of two more pictures."""
    for name in ("data/a/deep", "more"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("data/a/1.png", "data/a/deep/2.JPG", "more/3.png", "more/4.png"):
        (tmp_path / name).touch()
    return tmp_path / "data" / "a"


def names(paths) -> list[str]:
    return [os.path.basename(os.fsdecode(path)) for path in paths]


def told(listing) -> dict[str, int]:
    return {note.what: note.count for note in listing.passed_over()}


@pytest.mark.parametrize("target", ["../../more", "absolute", "link to a link"])
def test_links_to_folders_are_followed(folder, target):
    if target == "link to a link":
        (folder.parents[1] / "between").symlink_to("more")
        target = "../../between"
    (folder / "z").symlink_to(folder.parents[1] / "more" if target == "absolute" else target)
    assert names(image_files(folder)) == ["1.png", "2.JPG", "3.png", "4.png"]
    (folder.parent / "b").symlink_to("../more")
    assert names(image_files(folder.parent / "b")) == ["3.png", "4.png"]


@pytest.mark.parametrize("target", [".", "..", "../..", "deep/../deep/.."])
@pytest.mark.parametrize("place", ["", "deep"])
def test_a_link_back_ends(folder, target, place):
    (folder / place / "back").symlink_to(os.path.relpath(folder / target, folder / place))
    listing = Listing()
    assert listing.add(folder) == 2
    assert told(listing) == {"links to a folder above": 1}
    assert has_pictures(folder)


def test_two_folders_that_link_to_each_other(folder):
    (folder / "more").symlink_to("../../more")
    (folder.parents[1] / "more" / "back").symlink_to("../data/a")
    listing = Listing()
    assert listing.add(folder) == 4
    assert told(listing) == {"links to a folder above": 1}


def test_a_class_folder_that_links_back_is_empty(folder):
    (folder.parent / "b").symlink_to("..")
    listing = Listing()
    assert listing.add(folder.parent / "b") == 0
    assert told(listing) == {"links to a folder above": 1}


def test_what_is_not_listed_is_counted(folder):
    for name in ("notes.txt", "more.TXT", "README", ".DS_Store", "deep/._2.jpg"):
        (folder / name).touch()
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "1.png").touch()
    (folder / "gone").symlink_to("nowhere")
    (folder / "itself").symlink_to("itself")
    listing = Listing()
    assert listing.add(folder) == 2
    assert told(listing) == {
        "files that are no pictures [.txt 2, no ending 1]": 3,
        "hidden files and folders": 3,
        "links to nothing": 2,
    }


def test_subfolders_and_loose_pictures(folder):
    (folder.parent / "1.png").touch()
    (folder.parent / ".2.png").touch()
    (folder.parent / ".git").mkdir()
    assert subfolders(folder.parent) == ["a"]
    assert subfolders(folder.parent / "none") == []
    (note,) = loose_notes(folder.parent)
    assert (note.count, note.why) == (1, "they lie in no class folder")
    assert not loose_notes(folder.parents[1])


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    original = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match=r"Cannot list .*deep: Permission denied"):
        image_files(folder)

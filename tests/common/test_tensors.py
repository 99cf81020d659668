"""A write that fails is one sentence, whichever library writes."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alitok.artifacts.published import export_release, import_release
from alitok.common.errors import BadInput
from alitok.common.files import atomic_file, write_json
from alitok.common.images import save_grid
from alitok.common.tensors import save_pickled, save_tensors
from alitok.networks.classifier import Classifier


@pytest.fixture
def released(golden: Any, tmp_path: Path) -> Iterator[Path]:
    """A generator in the release's form, and no file may grow beyond a kilobyte from now on."""
    torch.save(golden.fill(golden.json("official_ar_tiny_keys")), tmp_path / "g.bin")
    import_release(tmp_path / "g.bin", tmp_path / "imported")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def to_file(write: Callable[[Any, Path], None], content: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        write(content, temporary)


WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "safetensors": lambda out, there: to_file(save_tensors, {"a": torch.zeros(1000)}, out),
    "torch.save": lambda out, there: to_file(save_pickled, {"a": torch.zeros(1000)}, out),
    "a classifier": lambda out, there: Classifier(3, 4).save(out),
    "an imported artifact": lambda out, there: import_release(there / "g.bin", out),
    "a file of the release": lambda out, there: export_release(there / "imported", out),
    "JSON": lambda out, there: write_json(out, ["x" * 5000]),
    "a grid": lambda out, there: save_grid(torch.rand(4, 3, 64, 64), out.with_suffix(".png"), 2),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_nothing_stays(name: str, released: Path) -> None:
    place = released / "out"
    place.mkdir()
    with pytest.raises(BadInput, match=r"Cannot write .*: File too large"):
        WRITERS[name](place / "it", released)
    assert list(place.iterdir()) == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(5.0)}
    save_tensors(state, tmp_path / "a.safetensors")
    save_pickled(state, tmp_path / "a.pt")
    for read in (load_file(tmp_path / "a.safetensors"), torch.load(tmp_path / "a.pt", weights_only=True)):
        assert torch.equal(read["a"], state["a"])

"""Class paths of version 0.1 go on: in YAML files, overrides, artifacts and the configuration of a resumed run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alitok.common.build import build, import_class, moved, present
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.training.changes import compare

ROOT = Path(__file__).parents[2]
STAGE1 = ROOT / "experiments" / "demo" / "tokenizer-stage1.yaml"


@pytest.mark.parametrize("old", moved())
def test_every_old_path_is_a_class_that_is_there_and_is_old(old: str) -> None:
    block = moved()[old]
    target = import_class(old)
    assert f"{target.__module__}.{target.__qualname__}" == block["class_path"]
    with pytest.raises(ModuleNotFoundError):
        __import__(old.rpartition(".")[0])


ENCODER = "alitok.models.causal_encoder.CausalEncoder"
OVERLAY = {"model": {"init_args": {"tokenizer": {"init_args": {"encoder": {"class_path": ENCODER}}}}}}


@pytest.mark.parametrize("way", ["file", "override", "override of a map"])
def test_a_configuration_that_names_an_old_class(way: str, tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(OVERLAY))
    files, words = {
        "file": ([STAGE1, tmp_path / "overlay.yaml"], []),
        "override": ([STAGE1], ["--model.tokenizer.encoder.class_path", ENCODER]),
        "override of a map": ([STAGE1], ["--model.tokenizer.encoder", f"{{class_path: {ENCODER}}}"]),
    }[way]
    base, composed = compose_run([STAGE1]), compose_run(files, words)
    expected = dict(base["model"]["init_args"]["tokenizer"]["init_args"]["encoder"]["init_args"], causal=True)
    encoder = composed["model"]["init_args"]["tokenizer"]["init_args"]["encoder"]
    assert encoder == {"class_path": "alitok.models.encoder.Encoder", "init_args": expected}


def test_what_is_set_in_an_old_block_is_kept() -> None:
    arguments: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_latents": 16, "code_dim": 4}
    arguments |= {"width": 16, "depth": 1, "heads": 1}
    assert build({"class_path": ENCODER, "init_args": arguments}).causal


def test_a_run_that_began_with_an_old_path_is_the_same_run() -> None:
    old = {"model": {"init_args": {"bottleneck": {"class_path": "alitok.models.tail_drop.TailDrop"}}}}
    new = present(old)
    assert new["model"]["init_args"]["bottleneck"]["class_path"] == "alitok.ideas.tail_drop.TailDrop"
    assert compare(old, new) == {}
    assert compare(new, old) == {}


PLAIN = "alitok.models.encoder.Encoder"


@pytest.mark.parametrize("way", ["override", "file"])
def test_what_an_old_class_stood_for_goes_with_it(way: str, tmp_path: Path) -> None:
    """CausalEncoder is an argument now; a later layer that takes the plain encoder takes that argument back."""
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(OVERLAY))
    back = yaml.safe_dump(OVERLAY).replace(ENCODER, PLAIN)
    (tmp_path / "back.yaml").write_text(back)
    files, words = [STAGE1, tmp_path / "overlay.yaml"], ["--model.tokenizer.encoder.class_path", PLAIN]
    if way == "file":
        files, words = [*files, tmp_path / "back.yaml"], []
    assert compose_run(files, words)["model"] == compose_run([STAGE1])["model"]


def test_a_module_that_has_moved_is_named_with_its_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_old.py").write_text("from alitok.models.fsq import FiniteScalarQuantizer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("of_old.Q", "alitok.models.fsq.FiniteScala"):
        with pytest.raises(BadInput, match=r"has moved: its FiniteScalarQuantizer is alitok\.ideas\.fsq"):
            import_class(path)

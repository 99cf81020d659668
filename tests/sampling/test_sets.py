"""A set of images that grows on disk: what is missing, what is kept, and when the output appears."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.sampling.sets import SampleSet, set_settings


def settings(count: int = 10, **more: Any) -> dict[str, Any]:
    return {
        "count": count,
        "image_size": 4,
        "num_classes": 3,
        "generator": {"name": "g", "digest": "1"},
        "guidance": 2.0,
        "class_names": ["a", "b", "c"],
        **more,
    }


def images(indices: range) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), index, dtype=torch.uint8) for index in indices])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["samples.npz", "samples", "runs.v1.0", "grid.png"])
def test_ragged_batches_in_any_order(tmp_path: Path, name: str) -> None:
    first = SampleSet(tmp_path / name, settings())
    first.start()
    assert first.missing(4) == [range(4), range(4, 8), range(8, 10)]
    first.write(8, images(range(8, 10)))
    first.write(2, images(range(2, 5)))
    assert not (tmp_path / name).exists()
    (first.partial / ".half.npy").write_bytes(b"torn")  # what a kill in the midst of a write leaves
    again = SampleSet(tmp_path / name, settings())
    again.start()
    assert again.drawn() == [2, 3, 4, 8, 9]
    assert again.missing(2) == [range(2), range(5, 7), range(7, 8)]
    for run in again.missing(2):
        again.write(run[0], images(run))
    assert again.missing(2) == []
    grids: list[Tensor] = []
    again.finish(grids.append)
    if name == "grid.png":
        assert torch.equal(grids[0], images(range(10)))
        assert names(tmp_path) == []
        return
    assert again.done()
    if name == "samples.npz":
        with np.load(tmp_path / name) as file:
            assert file.files == ["arr_0"]
            assert np.array_equal(file["arr_0"], images(range(10)).permute(0, 2, 3, 1).numpy())
        assert names(tmp_path) == ["samples.json", "samples.npz"]
        told = tmp_path / "samples.json"
    else:
        assert names(tmp_path) == [name]
        assert names(tmp_path / name) == [f"{index:06d}.png" for index in range(10)] + ["samples.json"]
        assert np.asarray(Image.open(tmp_path / name / "000007.png")).tolist() == np.full((4, 4, 3), 7).tolist()
        told = tmp_path / name / "samples.json"
    assert json.loads(told.read_text()) == settings()


def test_a_folder_at_a_link_is_where_the_link_leads(led_elsewhere: tuple[Path, Path]) -> None:
    out, target = led_elsewhere
    work = SampleSet(out, settings())
    work.start()
    work.write(0, images(range(10)))
    work.finish()
    assert len(names(target)) == 11
    assert names(target.parent) == ["target"]
    assert out.is_symlink() == (out != Path("."))
    assert SampleSet(target, settings()).done()


def test_a_link_to_a_file_decides_the_format_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "samples.npz").symlink_to(tmp_path / "blob")
    assert SampleSet(tmp_path / "samples.npz", settings()).kind == "npz"


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    first = SampleSet(tmp_path / "samples.npz", settings())
    first.start()
    first.write(0, images(range(3)))
    other = SampleSet(tmp_path / "samples.npz", settings(guidance=3.0))
    with pytest.raises(BadInput, match=r"unfinished set of samples with other settings \(guidance 2.0, not 3.0\)"):
        other.start()
    with pytest.raises(BadInput, match="generator"):
        SampleSet(tmp_path / "samples.npz", settings(generator={"name": "g", "digest": "2"})).start()
    renamed = SampleSet(tmp_path / "samples.npz", settings(generator={"name": "moved", "digest": "1"}))
    renamed.start()
    assert renamed.drawn() == [0, 1, 2]


def test_settings_without_images_give_way(tmp_path: Path) -> None:
    SampleSet(tmp_path / "samples.npz", settings()).start()
    other = SampleSet(tmp_path / "samples.npz", settings(guidance=3.0))
    other.start()
    assert json.loads((other.partial / "samples.json").read_text())["guidance"] == 3.0


@pytest.mark.parametrize("name", [".samples.npz.partial", ".samples.npz.partial.old"])
def test_what_a_kill_at_the_end_left_goes_with_the_next_start(tmp_path: Path, name: str) -> None:
    work = SampleSet(tmp_path / "samples.npz", settings(3))
    work.start()
    work.write(0, images(range(3)))
    shutil.copytree(work.partial, tmp_path / "copy")
    work.finish()
    (tmp_path / "copy").rename(tmp_path / name)
    work.discard()
    assert names(tmp_path) == ["samples.json", "samples.npz"]


def test_a_set_at_a_link_fills_the_disk_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "samples.npz").symlink_to(tmp_path / "disk" / "blob")
    work = SampleSet(tmp_path / "samples.npz", settings(3))
    work.start()
    work.write(0, images(range(3)))
    assert names(tmp_path / "disk") == [".blob.partial"]
    work.finish()
    assert names(tmp_path / "disk") == ["blob"]
    assert names(tmp_path) == ["disk", "samples.json", "samples.npz"]
    assert (tmp_path / "samples.npz").is_symlink()
    assert SampleSet(tmp_path / "samples.npz", settings(3)).done()


def test_settings_that_no_weight_holds_are_part_of_a_set(tmp_path: Path) -> None:
    """The steps of a flow decoder decide pictures as its weights do."""
    torch.manual_seed(0)
    part = {"image_size": 8, "patch_size": 2, "code_dim": 4, "width": 16, "depth": 1, "heads": 1}
    made = Generator(8, 3, 0, (4, 4), width=16, depth=1, heads=1)
    made.card = {"digest": "g"}
    found = []
    for steps in (4, 5):
        flow = {"class_path": "alitok.ideas.shared.flow_sampler.FlowSampler", "init_args": {"steps": steps}}
        decoder = {**part, "num_latents": 16, "sampler": flow}
        classes = {
            "encoder": "alitok.models.encoder.Encoder",
            "quantizer": "alitok.models.quantizer.ClusteredQuantizer",
        }
        arguments = {"encoder": {**part, "num_latents": 16}, "quantizer": {"codebook_size": 8, "code_dim": 4}}
        blocks = {name: {"class_path": path, "init_args": arguments[name]} for name, path in classes.items()}
        blocks["decoder"] = {"class_path": "alitok.ideas.flow_decoder.FlowDecoder", "init_args": decoder}
        block = {"class_path": "alitok.models.tokenizer.Tokenizer", "init_args": blocks}
        torch.manual_seed(0)
        save_artifact(tmp_path / str(steps), block, build(block), {"kind": "tokenizer"})
        tokenizer = load_tokenizer(tmp_path / str(steps))
        found.append(set_settings(made, tokenizer, ("g", "t"), Draw(), 3)["tokenizer"])
    assert found[0]["digest"] == found[1]["digest"]
    assert found[0]["decoder"] == found[1]["decoder"]
    assert found[0] != found[1]


def test_a_finished_set_of_other_settings_is_replaced_whole(tmp_path: Path) -> None:
    for value in (1, 2):
        work = SampleSet(tmp_path / "samples.npz", settings(3, guidance=float(value)))
        assert not work.done()
        work.start()
        work.write(0, images(range(value, value + 3)))
        work.finish()
        assert work.done()
        with np.load(tmp_path / "samples.npz") as file:
            assert file["arr_0"][:, 0, 0, 0].tolist() == [value, value + 1, value + 2]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text('{"fid": 3}')
    with pytest.raises(BadInput, match=r"would replace .*samples\.json"):
        SampleSet(tmp_path / "samples.npz", settings())
    with pytest.raises(BadInput, match=r"out\.jpg must be a \.png grid"):
        SampleSet(tmp_path / "out.jpg", settings())
    with pytest.raises(BadInput, match="exists and is no empty folder"):
        SampleSet(tmp_path, settings())
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        SampleSet(tmp_path / "a.npz", settings())


def test_exactly_the_count_whatever_two_commands_at_once_have_drawn(tmp_path: Path) -> None:
    for name in ("samples.npz", "grid.png"):
        work = SampleSet(tmp_path / name, settings())
        work.start()
        for part in (range(4), range(3, 8), range(2, 5)):
            work.write(part[0], images(part))
        with pytest.raises(BadInput, match=r"lacks 2 of 10 images: give the same command again"):
            work.finish()
        assert not (tmp_path / name).exists()
        work.write(7, images(range(7, 10)))
        grids: list[Tensor] = []
        work.finish(grids.append)
        if name == "grid.png":
            assert torch.equal(grids[0], images(range(10)))
        else:
            with np.load(tmp_path / name) as file:
                assert file["arr_0"][:, 0, 0, 0].tolist() == list(range(10))


def test_a_kill_while_the_archive_is_written_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = SampleSet(tmp_path / "samples.npz", settings())
    work.start()
    work.write(0, images(range(10)))
    seen: list[str] = []

    arrays = SampleSet._arrays

    def looking(self: SampleSet) -> Any:
        seen.extend(names(tmp_path))
        yield from arrays(self)

    monkeypatch.setattr(SampleSet, "_arrays", looking)
    work.finish()
    assert seen == [".samples.npz.partial"]
    assert names(tmp_path) == ["samples.json", "samples.npz"]


GPU = {"batch": 4, "device": "NVIDIA H200"}


@pytest.mark.parametrize("name", ["samples.npz", "samples"])
@pytest.mark.parametrize(
    ("second", "said"),
    [
        (GPU, False),
        ({**GPU, "batch": 8}, True),
        ({**GPU, "device": "NVIDIA H100 80GB HBM3"}, True),
        ({"batch": 4, "device": "cpu"}, True),
    ],
)
def test_a_set_keeps_what_it_was_drawn_with(
    tmp_path: Path, name: str, second: dict[str, Any], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch and card do not decide a set, and do not refuse it, but on a GPU they change some of its images."""
    out = tmp_path / name
    for start, kind in ((0, GPU), (5, second)):
        work = SampleSet(out, settings())
        work.start(kind)
        work.write(start, images(range(start, start + 5)))
    work.finish()
    written = json.loads(work.sidecar.read_text())
    assert written.pop("drawn_with") == ([GPU, second] if said else [GPU])
    assert written == settings()
    assert ("drawn in 2 ways" in capsys.readouterr().out) == said
    assert SampleSet(out, settings()).done()


def test_on_a_cpu_another_batch_is_not_worth_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for batch in (4, 8):
        SampleSet(tmp_path / "samples.npz", settings()).start({"batch": batch, "device": "cpu"})
    assert capsys.readouterr().out == ""

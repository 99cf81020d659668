"""Names that are no UTF-8, from a class folder through the whole line: they are kept, and end no run."""

import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from alitok.artifacts.folder import load_artifact
from alitok.cli import main, run
from alitok.common.errors import BadInput
from alitok.data.token_cache import TokenCache
from alitok.reports.comparison import write_page
from alitok.reports.runs import open_runs
from alitok.training.launch import run as launch


@pytest.fixture(autouse=True)
def _no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's copy of the log would hold names that pytest-xdist cannot send."""
    monkeypatch.setattr(logging.getLogger("alitok"), "disabled", True)


STEPS = ["--model.phases", "{continuous: null, main: {steps: 2, lr: 1.e-3}}", "--trainer.val_check_interval", "2"]
STEPS += ["--data.val_count", "2", "--data.count", "null"]


def make_pictures(folder: Path, names: tuple[str, str]) -> None:
    """Two classes of ten pictures, and a file that is none and whose name is that of the second class."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(10):
            noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{index}.png")
    (folder / names[1] / f"{names[1]}.png").write_bytes(b"no picture")


def fit(name: str, folder: Path, source: Path, *overrides: str) -> Path:
    """Two steps of a tiny configuration; returns the artifact."""
    config: dict[str, Any] = tiny(name, folder, *STEPS, *overrides)
    if "source" in config["data"]["init_args"]:
        config["data"]["init_args"]["source"] = str(source)
    for _ in range(2):  # the second finds it finished, and says so
        launch("fit", copy.deepcopy(config))
    return Path(config["trainer"]["default_root_dir"]) / "artifact"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode()])
def test_a_class_of_any_name_goes_through_the_whole_line(
    name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a", os.fsdecode(name))
    pictures = tmp_path / names[1] / "pictures"
    make_pictures(pictures, names)
    runs = tmp_path / "runs"
    tokenizer = fit("tokenizer-stage1", runs, pictures)
    assert json.loads((tokenizer / "card.json").read_text("utf-8"))["class_names"] == list(names)

    cache = runs / "tokens"
    main(["tokenize", "--tokenizer", str(tokenizer), "--data", str(pictures), "--out", str(cache)])
    assert TokenCache(cache).class_names == list(names)
    assert names[1] in TokenCache(cache).metadata["skipped"][0]["reason"]
    main(["tokenize", "--tokenizer", str(tokenizer), "--data", str(pictures), "--out", str(cache)])

    words = ["--define.tokenizer", str(tokenizer), "--define.num_classes", "2"]
    generator = fit("generator", runs, pictures, *words)
    assert load_artifact(generator, "generator").card["class_names"] == list(names)

    drawn = ["sample", "--generator", str(generator), "--tokenizer", str(tokenizer)]
    for out in ("folder", "set.npz", f"{names[1]}.png", f"{names[1]}"):
        main([*drawn, "--out", str(runs / out), "--count", "6"])
    main([*drawn, "--out", str(runs / "class.png"), "--classes", names[1]])
    assert json.loads((runs / "folder" / "samples.json").read_text("utf-8"))["class_names"] == list(names)

    classifier = runs / "classifier"
    (pictures / names[1] / f"{names[1]}.png").unlink()
    main(["train-classifier", "--data", str(pictures), "--size", "32", "--steps", "1", "--out", str(classifier)])
    judged = ["--extractor", str(classifier), "--json", str(runs / "record.json")]
    main(["evaluate", str(runs / names[1]), "--reference", str(pictures), *judged])
    main(["evaluate", str(pictures / names[1]), "--reference", str(runs / "set.npz"), *judged])
    assert json.loads((runs / "record.json").read_text("utf-8"))["samples"]["name"] == names[1]
    main(["reconstruct", "--tokenizer", str(tokenizer), str(pictures / names[1]), "--out", str(runs / f"r{names[1]}")])

    write_page([tokenizer.parent, generator.parent], runs / "compare.html", data=str(pictures))
    assert "generator" in (runs / "compare.html").read_text("utf-8")
    assert open_runs([tokenizer.parent])[0].parts["tokenizer"].config["data"]["init_args"]["source"] == str(pictures)
    said = capsys.readouterr().out
    assert f"{names[1].encode(errors='backslashreplace').decode()}/pictures" in said


@pytest.mark.parametrize("verb", ["tokenize", "fit", "train-classifier"])
def test_an_output_that_could_not_be_read_is_refused_at_the_start(verb: str, tmp_path: Path, artifacts: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")
    words = ["--data", "shapes", "--count", "4", "--out", str(out)]
    config = tiny("tokenizer-stage1", tmp_path, *STEPS)
    config["trainer"]["default_root_dir"] = str(out)
    starts: dict[str, Callable[[], None]] = {
        "fit": lambda: launch("fit", config),
        "tokenize": lambda: run(["tokenize", *words, "--tokenizer", str(artifacts / "tokenizer")]),
        "train-classifier": lambda: run(["train-classifier", *words]),
    }
    with pytest.raises(BadInput, match="no valid UTF-8; name another folder"):
        starts[verb]()
    assert not out.exists()

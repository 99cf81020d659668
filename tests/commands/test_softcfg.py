"""SoftCFG chosen by name: drawn, recorded with the images, carried into the evaluation, searched over."""

import json
from pathlib import Path

import numpy as np
import torch

from alitok.cli import main
from alitok.networks.classifier import Classifier


def test_by_name_in_every_verb_that_draws(artifacts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Classifier(num_classes=4, width=2).save(tmp_path / "classifier")
    models = ["--generator", str(artifacts / "generator"), "--tokenizer", str(artifacts / "tokenizer")]
    drawn = {}
    for name in ("softcfg", "power-cosine"):
        out = tmp_path / f"{name}.npz"
        main(["sample", *models, "--count", "4", "--guidance", "4", "--schedule", name, "--out", str(out)])
        drawn[name] = np.load(out)["arr_0"]
        assert json.loads(out.with_suffix(".json").read_text())["schedule"] == name
    assert (drawn["softcfg"] != drawn["power-cosine"]).any()

    measure = ["--reference", str(tmp_path / "power-cosine.npz"), "--extractor", str(tmp_path / "classifier")]
    main(["evaluate", str(tmp_path / "softcfg.npz"), *measure, "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["schedule"], record["guidance"]) == ("softcfg", 4.0)

    search = ["--scales", "2", "--powers", "1", "--refine", "0", "--count", "20", "--out", str(tmp_path / "search")]
    main(["tune-guidance", *models, *measure, "--schedule", "softcfg", *search])
    found = json.loads((tmp_path / "search" / "guidance.json").read_text())
    assert found["settings"]["schedule"] == "softcfg"
    assert (found["best"]["scale"], found["best"]["power"]) == (2.0, 1.0)

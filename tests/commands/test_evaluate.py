"""`alitok evaluate`: numbers of known sets, and the record that says what they may be compared with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from evaluating import against, evaluate, save_pngs, shapes
from PIL import Image
from scipy import linalg
from scipy.spatial.distance import cdist

from alitok.cli import main, run
from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.evaluation.classifier import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
CONTRACT = {
    *("fid", "sfid", "inception_score", "precision", "recall", "samples", "reference", "extractor", "resize"),
    *("quantisation", "comparable", "reasons"),
}
NUMBERS = ("fid", "sfid", "inception_score", "precision", "recall")


def frechet(mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any) -> float:
    values, vectors = linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(linalg.eigvalsh(root @ cov_y @ root).clip(0)).sum()
    return float(np.sum((mean_x - mean_y) ** 2) + np.trace(cov_x + cov_y) - 2 * cross)


def inside(x: Any, y: Any) -> float:
    """Share of x within the distance of some y's third nearest other y."""
    return float((cdist(x, y) <= np.sort(cdist(y, y), axis=1)[:, 3]).any(axis=1).mean())


def test_adm_protocol_against_float64_through_torchscript(inception: Path) -> None:
    record = evaluate(
        inception, inception / "samples.npz", "--reference", inception / "reference.npz", extractor="network.pt"
    )
    with np.load(inception / "samples.npz") as samples, np.load(inception / "reference.npz") as reference:
        pooled, spatial, p = stand_in.truth(samples["arr_0"])
        near, _, _ = stand_in.truth(reference["arr_0"])
        expected = {
            "fid": frechet(pooled.mean(axis=0), np.cov(pooled.T), reference["mu"], reference["sigma"]),
            "sfid": frechet(spatial.mean(axis=0), np.cov(spatial.T), reference["mu_s"], reference["sigma_s"]),
            "inception_score": np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()),
            "precision": inside(pooled, near),
            "recall": inside(near, pooled),
        }
    assert 0 < expected["precision"] < 1
    assert 0 < expected["recall"] < 1
    assert {name: record[name] for name in NUMBERS} == pytest.approx(expected, rel=1e-4)
    assert record["resize"] == "bilinear to 299 x 299 inside the network"
    assert record["protocol"] == "adm"
    for words in ("100 samples", "reference has 48 pixels, the samples 32", "not the 2015 Inception", "nothing tells"):
        assert any(words in reason for reason in record["reasons"])
    assert not any("ADM's" in reason for reason in record["reasons"])


def test_statistics_of_ours_stand_for_their_images(inception: Path) -> None:
    network = {"extractor": "network.pt"}
    saved = inception / "train.npz"
    words = ["shapes", "--split", "train", "--count", 90, "--size", 32]
    alone = evaluate(inception, *words, "--save-statistics", saved, **network)
    assert (alone["fid"], alone["reference"]) == (None, None)
    assert alone["inception_score"] > 1
    with np.load(saved) as file:
        about = json.loads(str(file["about"]))
    assert (about["made_of"], about["image_size"], about["images"]) == ("training images", 32, "shapes")

    stored = evaluate(inception, inception / "samples.npz", "--reference", saved, **network)
    np.savez(inception / "train-images.npz", shapes("train", 90))
    images = evaluate(inception, inception / "samples.npz", "--reference", inception / "train-images.npz", **network)
    assert (stored["fid"], stored["sfid"]) == pytest.approx((images["fid"], images["sfid"]), rel=1e-6)
    assert stored["precision"] is None
    assert images["precision"] > 0
    turned = evaluate(inception, saved, "--reference", inception / "train-images.npz", **network)
    assert turned["fid"] == pytest.approx(0, abs=1e-6)
    assert (turned["samples"]["count"], turned["samples"]["image_size"]) == (90, 32)

    stand_in.write(inception / "other.pt", seed=1)
    with pytest.raises(BadInput, match="was measured with the extractor"):
        evaluate(inception, inception / "samples.npz", "--reference", saved, extractor="other.pt")


def test_record_of_an_npz_against_a_folder_of_the_same_images(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = against(sets, "shapes.npz", "shapes", "--batch", 5)
    assert record.keys() >= CONTRACT
    assert record["fid"] == pytest.approx(0, abs=1e-4)
    assert 1 <= record["inception_score"] <= 10
    assert (record["precision"], record["recall"], record["sfid"]) == (1, 1, None)
    digest = sha256(sets / "shapes.npz")
    assert record["samples"] == {"name": "shapes.npz", "digest": digest, "count": 12, "image_size": 32}
    assert (record["quantisation"], record["resize"], record["measure"]) == (None, "none", "gFID")
    assert record["reference"]["name"] == "shapes"
    assert len(record["reference"]["digest"]) == 64
    assert record["extractor"] == {"name": "classifier", "digest": Classifier.load(sets / "classifier").digest()}
    assert record["comparable"] is False
    reasons = " | ".join(record["reasons"])
    for words in ("12 samples instead of 50,000", "classes of the samples", "not ADM's", "not the 2015 Inception"):
        assert words in reasons
    assert "no: 12 samples" in " ".join(capsys.readouterr().out.split())


def test_what_is_known_of_the_samples_is_in_the_record(sets: Path) -> None:
    folder = save_pngs(sets / "drawn", shapes("val", 12))
    known = {
        "count": 12,
        "generator": {"name": "g", "digest": "d1"},
        "tokenizer": {"name": "t", "digest": "d2"},
        "guidance": 3.0,
        "power": 2.0,
        "schedule": "power-cosine",
        "temperature": 1.0,
        "seed": 5,
        "classes": "cycling",
        "num_classes": 10,
        "quantisation": "rounded",
    }
    (folder / "samples.json").write_text(json.dumps(known))
    record = against(sets, "drawn", "shapes.npz")
    for name in ("generator", "tokenizer", "guidance", "power", "schedule", "temperature", "seed", "quantisation"):
        assert record[name] == known[name]
    reasons = " | ".join(record["reasons"])
    assert "nothing tells" not in reasons
    assert "1,000 classes in equal counts" in reasons
    (folder / "samples.json").write_text(json.dumps({**known, "seed": None}))
    assert "nothing tells the seed of the samples" in against(sets, "drawn", "shapes.npz")["reasons"]
    with pytest.raises(BadInput, match="would replace"):
        run(["evaluate", str(folder), "--reference", str(sets / "shapes"), "--json", str(folder / "samples.json")])


def test_every_form_of_a_set_gives_the_same_numbers(sets: Path) -> None:
    first = against(sets, "others.npz", "shapes.npz")
    assert first["fid"] > 0.01
    assert first["reference"] == {"name": "shapes.npz", "digest": sha256(sets / "shapes.npz")}
    stored = against(sets, "others.npz", "statistics.npz", "--batch", 7)
    assert stored["fid"] == pytest.approx(first["fid"], rel=1e-5)
    assert stored["inception_score"] == pytest.approx(first["inception_score"], rel=1e-5)
    assert any("resolution of the reference is not known" in reason for reason in stored["reasons"])
    turned = against(sets, "shapes", "others.npz")
    assert turned["fid"] == pytest.approx(first["fid"], rel=1e-5)  # the distance is symmetric
    spec = evaluate(sets, "shapes", "--count", 12, "--reference", sets / "shapes.npz")
    assert spec["fid"] == pytest.approx(first["fid"], rel=1e-5)
    assert any("losslessly" in reason for reason in spec["reasons"])


def test_a_class_folder_is_taken_whole_and_cropped_to_the_other_set(sets: Path) -> None:
    images = shapes("val", 12, 64)
    for index, image in enumerate(images):
        folder = sets / "classes" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    record = against(sets, "classes", "shapes.npz")
    assert (record["samples"]["count"], record["samples"]["image_size"]) == (12, 32)
    with pytest.raises(BadInput, match="give --size"):
        against(sets, "classes", "classes")
    assert against(sets, "classes", "classes", "--size", 24)["fid"] == pytest.approx(0, abs=1e-4)


def test_what_a_data_spec_is_made_of_is_told_only_where_it_is_known(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, image in enumerate(shapes("val", 12)):
        folder = sets / "unsplit" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    for split, made_of in (("val", "unknown"), ("train", "training images")):
        saved = sets / f"unsplit-{split}.npz"
        capsys.readouterr()
        evaluate(sets, sets / "unsplit", "--split", split, "--size", 32, "--save-statistics", saved)
        first, second = capsys.readouterr().out.splitlines()[:2]
        assert first.endswith(f"class folders; images: 12 of {split}; 3 classes: class0, class1, class2.")
        assert ("all pictures are measured, because there is no split" in second) == (split == "val")
        with np.load(saved) as file:
            assert json.loads(str(file["about"]))["made_of"] == made_of
        assert against(sets, "shapes.npz", saved.name)["fid"] > 0
    record = evaluate(sets, sets / "shapes.npz", "--reference", "shapes", "--reference-split", "val")
    assert "the reference is made of validation images, not of training images" in record["reasons"]


def test_outputs_are_tried_before_anything_is_measured(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alitok.evaluation.gfid.measure", None)
    for option in ("--json", "--save-statistics"):
        with pytest.raises(BadInput, match="Cannot write"):
            run(["evaluate", f"{sets}/shapes.npz", "--reference", f"{sets}/shapes", option, f"{sets}/shapes.npz/x"])


def test_a_missing_inception_file_is_named_with_where_it_belongs(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("extractors", "clean_fid"):
        monkeypatch.setattr(f"alitok.evaluation.{room}.clean_fid_folder", lambda: sets / "none")
    for protocol in ("adm", "clean", "legacy_tensorflow"):
        with pytest.raises(BadInput, match=r"Missing .*none/inception-2015-12-05.pt; .*nvidia.*EXTRACTOR="):
            run(["evaluate", f"{sets}/shapes.npz", "--reference", f"{sets}/shapes", "--protocol", protocol])


def test_few_pictures_have_a_fid_without_precision_and_one_has_none(sets: Path) -> None:
    for count in (1, 3):
        save_pngs(sets / f"few-{count}", shapes("val", count))
    record = against(sets, "few-3", "shapes.npz")
    assert record["fid"] > 0
    assert (record["precision"], record["recall"]) == (None, None)
    with pytest.raises(BadInput, match="few-1 has 1 image: a FID takes at least two"):
        against(sets, "few-1", "shapes.npz")


def test_another_size_is_a_reason(sets: Path) -> None:
    np.savez(sets / "large.npz", arr_0=np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8))
    assert any("48 pixels" in reason for reason in against(sets, "shapes", "large.npz")["reasons"])


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_jpeg_is_a_reason(sets: Path, ending: str) -> None:
    folder = save_pngs(sets / f"jpeg-{ending}", shapes("val", 5))
    Image.open(folder / "003.png").save(folder / f"003.{ending}", "JPEG")
    assert any("losslessly" in reason for reason in against(sets, folder.name, "shapes.npz")["reasons"])
    assert not any("losslessly" in reason for reason in against(sets, "shapes", "shapes.npz")["reasons"])


@pytest.mark.parametrize(
    ("samples", "reference", "more", "words"),
    [
        ("none.npz", "shapes", [], r"none\.npz does not exist"),
        ("shapes", "none.npz", [], r"none\.npz does not exist"),
        ("named.npz", "shapes", [], "no array 'arr_0', only images"),
        ("float.npz", "shapes", [], "must be uint8"),
        ("empty", "shapes", [], "holds no PNG"),
        ("broken", "shapes", [], r"Cannot read the image .*007\.png"),
        ("shapes", "broken", [], r"Cannot read the image .*007\.png"),
        ("mixed", "shapes", [], r"012\.png has 40 x 40 pixels"),
        ("shapes", "words.npz", [], "mu and sigma must be numbers"),
        ("shapes", "holes.npz", [], "mu or sigma holds NaN"),
        ("shapes", "wide.npz", [], "of 20 features, but classifier gives 16"),
        ("statistics.npz", "shapes", ["--save-statistics", "x.npz"], "holds statistics, not images"),
        ("shapes", "shapes", ["--batch", 0], "--batch must be at least 1"),
        ("shapes", "shapes", ["--size", 32], "--size is the crop of a data spec"),
        ("shapes", "shapes", ["--extractor", "shapes.npz"], "shapes.npz"),
        ("shapes.npz", "shapes", ["--save-statistics", "shapes.npz"], "would replace"),
        ("shapes", "shapes", ["--tokenizer", "x"], "belong to --reconstruction"),
        ("shapes", "shapes", ["--count", 3], "--count applies only if SAMPLES is a data spec"),
        ("shapes", "shapes", ["--split", "train"], "--split applies only if SAMPLES is a data spec"),
        ("shapes", "shapes", ["--reference-split", "val"], "--reference-split applies only if REF is a data spec"),
        ("shapes", "shapes", ["--quantisation", "rounded"], "--quantization is for reconstructions"),
        ("shapes", "shapes", ["--json", "shapes.npz/record.json"], r"shapes\.npz is no folder that can be written"),
        ("shapes", "shapes", ["--save-statistics", "empty"], "empty: it is a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    sets: Path,
    samples: str,
    reference: str,
    more: list[object],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.chdir(sets)
    images = shapes("val", 12)
    if not (sets / "empty").exists():
        np.savez("named.npz", images=images)
        np.savez("float.npz", images / np.float32(255))
        np.savez("wide.npz", mu=np.zeros(20), sigma=np.eye(20))
        np.savez("words.npz", mu=np.array(["a"] * 16), sigma=np.eye(16))
        np.savez("holes.npz", mu=np.full(16, np.nan), sigma=np.eye(16))
        (sets / "empty").mkdir()
        (save_pngs(sets / "broken", images) / "007.png").write_bytes(b"no picture")
        save_pngs(sets / "mixed", [*images, np.zeros((40, 40, 3), np.uint8)])
    record = sets / "refused.json"
    words_given = ["evaluate", sets / samples, "--reference", sets / reference, "--json", record]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words_given, "--extractor", sets / "classifier", *more]])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert not record.exists()


def test_wrong_usage(sets: Path) -> None:
    for words, message in (
        ([], "Give SAMPLES"),
        (["shapes"], "--reference REF to measure against"),
        (["--reconstruction", "--data", "shapes"], "needs --tokenizer"),
        (["shapes", "--reconstruction", "--tokenizer", "t", "--data", "shapes"], "leave SAMPLES out"),
        (["shapes", "--reference", "shapes", "--pfid"], "--pfid perturbs the codes of a tokenizer"),
        (["shapes", "--reference", "shapes", "--picture", "x.png"], "--picture shows reconstructions"),
        (["shapes", "--chd", "t", "--save-statistics", "x.npz"], "--chd compares SAMPLES with REF"),
        (["--reconstruction", "--chd", "t"], "leave --chd out"),
    ):
        with pytest.raises(BadInput, match=message):
            evaluate(sets, *words)

"""`alitok evaluate`: numbers of known sets, and the record that says what they may be compared with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
import torch
from PIL import Image
from scipy import linalg
from scipy.spatial.distance import cdist

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.cli import main, run
from alitok.common.build import build
from alitok.common.distributed import process_group
from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.common.images import to_uint8
from alitok.common.random import stream
from alitok.config import compose_run
from alitok.data.shapes import Shapes
from alitok.evaluation.classifier import Classifier, ClassifierExtractor, array_batches, train_classifier
from alitok.evaluation.code_distance import CodeHistograms
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.studies import small

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
CONTRACT = {
    *("fid", "sfid", "inception_score", "precision", "recall", "samples", "reference", "extractor", "resize"),
    *("quantisation", "comparable", "reasons"),
}
NUMBERS = ("fid", "sfid", "inception_score", "precision", "recall")


def shapes(split: str, count: int, size: int = 32) -> Any:
    return np.stack([np.asarray(image) for image, _ in Shapes(split, size, count)])


def save_pngs(folder: Path, images: Any) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, and twelve shapes as an .npz, as a folder and as stored statistics; and twelve others."""
    folder = tmp_path_factory.mktemp("sets")
    images = shapes("train", 12)
    pixels, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(12) % 10
    classifier = train_classifier(array_batches(pixels, labels), 10, steps=20, width=4)
    classifier.save(folder / "classifier")
    np.savez(folder / "shapes.npz", arr_0=images)
    save_pngs(folder / "shapes", images)
    np.savez(folder / "others.npz", arr_0=shapes("val", 12))
    statistics = FeatureStatistics(16)
    statistics.update(ClassifierExtractor(classifier, "classifier")(pixels).pooled)
    statistics.save(folder / "statistics.npz")
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the Inception file; 100 samples; a reference in ADM's form of 120 images, 70 of them kept."""
    folder = tmp_path_factory.mktemp("inception")
    stand_in.write(folder / "network.pt")
    np.savez(folder / "samples.npz", shapes("val", 100))
    training = shapes("train", 120, 48)
    pooled, spatial, _ = stand_in.truth(training)
    arrays = {"mu": pooled.mean(axis=0), "sigma": np.cov(pooled.T)}
    arrays |= {"mu_s": spatial.mean(axis=0), "sigma_s": np.cov(spatial.T)}
    np.savez(folder / "reference.npz", arr_0=training[:70], **arrays)
    return folder


def evaluate(sets: Path, *words: object, extractor: str = "classifier") -> dict[str, Any]:
    record = sets / "record.json"
    record.unlink(missing_ok=True)
    run([str(word) for word in ["evaluate", *words, "--json", record, "--extractor", sets / extractor]])
    return json.loads(record.read_text())


def against(sets: Path, samples: str, reference: str, *more: object) -> dict[str, Any]:
    return evaluate(sets, sets / samples, "--reference", sets / reference, *more)


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
        ("shapes", "shapes", ["--count", 3], "--count is of a data spec as SAMPLES"),
        ("shapes", "shapes", ["--split", "train"], "--split is of a data spec as SAMPLES"),
        ("shapes", "shapes", ["--reference-split", "val"], "--reference-split is of a data spec as REF"),
        ("shapes", "shapes", ["--quantisation", "rounded"], "--quantisation is of reconstructions"),
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


def test_reconstruction_is_measured_against_its_own_images(
    sets: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--reconstruction", "--tokenizer", artifacts / "tokenizer", "--data", "shapes", "--count", 20]
    record = evaluate(sets, *words, "--batch", 7)
    assert capsys.readouterr().out.startswith("Data shapes: drawn shapes; images: 20 of val; 10 classes: circle,")
    assert record["measure"] == "rFID"
    assert record["rfid"] > 0
    assert record["rfid_mean"] > 0
    assert record["rfid_mean"] + record["rfid_covariance"] == pytest.approx(record["rfid"])
    assert record["fid"] is None
    assert 0 < record["psnr"] < 100
    assert 0 < record["codebook_usage"] <= 1
    assert record["quantisation"] == "truncated"
    assert record["reference"] == {name: record["samples"][name] for name in ("name", "digest")}
    assert record["samples"]["count"] == 20
    assert record["tokenizer"]["digest"] == json.loads((artifacts / "tokenizer" / "card.json").read_text())["digest"]
    assert any("20 images instead of the 50,000" in reason for reason in record["reasons"])

    saved = sets / "val.npz"
    evaluate(sets, "shapes", "--count", 20, "--size", 32, "--save-statistics", saved)
    stored = evaluate(sets, *words, "--reference", saved)
    assert stored["rfid"] == pytest.approx(record["rfid"], rel=1e-5)
    assert not any("reference" in reason for reason in stored["reasons"])
    given = evaluate(sets, *words, "--reference", sets / "others.npz")
    assert any("what the reference is made of" in reason for reason in given["reasons"])

    # Each reference for its own number.
    with pytest.raises(BadInput, match="statistics of validation images, which are meant for rFID"):
        against(sets, "shapes", "val.npz")
    trained = sets / "trained.npz"
    evaluate(sets, "shapes", "--split", "train", "--count", 20, "--size", 32, "--save-statistics", trained)
    with pytest.raises(BadInput, match="made of training images, which is meant for the FID of samples"):
        evaluate(sets, *words, "--reference", trained)
    with pytest.raises(BadInput, match="leave it out"):
        evaluate(sets, *words, "--reference", "shapes", "--reference-split", "train")
    other = sets / "val24.npz"
    evaluate(sets, "shapes", "--count", 20, "--size", 24, "--save-statistics", other)
    with pytest.raises(BadInput, match="of 24 pixels, the reconstructions have 32"):
        evaluate(sets, *words, "--reference", other)


def test_chd_is_of_the_codes_of_both_sets(sets: Path, artifacts: Path) -> None:
    codes = ["--chd", artifacts / "tokenizer"]
    record = against(sets, "shapes.npz", "others.npz", *codes, "--batch", 5)
    tokenizer, histograms = load_tokenizer(artifacts / "tokenizer"), []
    for split in ("train", "val"):
        histograms.append(CodeHistograms(tokenizer.codebook_size, tokenizer.sub_codes))
        pixels = torch.from_numpy(shapes(split, 12)).permute(0, 3, 1, 2).float() / 255
        histograms[-1].update(tokenizer.encode(pixels))
    assert record["chd"] == pytest.approx(histograms[0].distance(histograms[1]))
    assert 0 < record["chd"] < 1
    assert record["codes"]["digest"] == tokenizer.card["digest"]
    assert against(sets, "shapes.npz", "shapes.npz", *codes)["chd"] == pytest.approx(0, abs=1e-6)
    assert against(sets, "shapes.npz", "others.npz")["chd"] is None
    assert record["fid_mean"] + record["fid_covariance"] == pytest.approx(record["fid"])
    for samples, reference in (("statistics.npz", "statistics.npz"), ("shapes.npz", "statistics.npz")):
        with pytest.raises(BadInput, match="which have no codes: leave --chd out"):
            against(sets, samples, reference, *codes)
    with pytest.raises(BadInput, match="has images of 24 pixels, and the tokenizer of CHD takes 32"):
        evaluate(sets, "shapes", "--count", 4, "--size", 24, "--reference", "shapes", *codes)


def test_pfid_is_of_perturbed_codes(sets: Path, artifacts: Path) -> None:
    words = ["--reconstruction", "--tokenizer", artifacts / "tokenizer", "--data", "shapes", "--count", 12]
    plain = evaluate(sets, *words, "--picture", sets / "plain.png")
    record = evaluate(sets, *words, "--pfid", "--batch", 5, "--picture", sets / "perturbed.png")
    widths = [Image.open(sets / name).width for name in ("plain.png", "perturbed.png")]
    assert widths == [2 * 66 + 2, 4 * 66 + 2]  # originals and decoded, then the two ends of the perturbations
    assert plain["pfid"] is None
    assert record["rfid"] == pytest.approx(plain["rfid"], rel=1e-5)
    assert list(record["pfid_by_setting"]) == [f"alpha 0.{alpha}, delta 2" for alpha in range(5, 10)]
    assert record["pfid"] == pytest.approx(sum(record["pfid_by_setting"].values()) / 5)
    assert "pFID has no published deltas for a codebook of 24 codes" in record["reasons"]

    tokenizer = load_tokenizer(artifacts / "tokenizer")
    images = torch.from_numpy(shapes("val", 12)).permute(0, 3, 1, 2)
    ids, latents = tokenizer.encode(images.float() / 255), tokenizer.encode_latents(images.float() / 255)
    second = torch.cdist(latents, tokenizer.quantizer.codebook.weight.detach()).argsort(-1)[..., 1]
    uniforms = torch.stack([torch.rand(ids.shape[1], 2, generator=stream("pFID", index)) for index in range(12)])
    swapped = torch.where((uniforms[..., 0] < 0.7) & (uniforms[..., 1] >= 0.5), second, ids)
    extractor = ClassifierExtractor(Classifier.load(sets / "classifier"), "classifier")
    real, fake = FeatureStatistics(16), FeatureStatistics(16)
    real.update(extractor(images).pooled)
    fake.update(extractor(to_uint8(tokenizer.decode(swapped))).pooled)
    assert record["pfid_by_setting"]["alpha 0.7, delta 2"] == pytest.approx(frechet_distance(fake, real), rel=1e-5)


def test_adms_reference_is_refused_for_reconstructions(inception: Path, artifacts: Path) -> None:
    words = ["--reconstruction", "--tokenizer", artifacts / "tokenizer", "--data", "shapes", "--count", 8]
    with pytest.raises(BadInput, match="made of training images"):
        evaluate(inception, *words, "--reference", inception / "reference.npz", extractor="network.pt")


def of_one_process(rank: int, folder: str, tokenizer: str, port: int) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    broken = ["evaluate", f"{folder}/broken", "--batch", "3", "--save-statistics", f"{folder}/x.npz"]
    with process_group(torch.device("cpu")):
        both(Path(folder), tokenizer, "two")
        # the fourth batch is the second process's
        with pytest.raises(BadInput, match="Another process" if rank == 0 else r"009\.png"):
            run([*broken, "--extractor", f"{folder}/network.pt"])


def both(folder: Path, tokenizer: str, name: str) -> None:
    words = ["--extractor", f"{folder}/network.pt", "--batch", "16", "--json"]
    sets = [f"{folder}/samples.npz", "--reference", f"{folder}/reference.npz"]
    run(["evaluate", *sets, *words, f"{folder}/g-{name}.json"])
    spec = ["--reconstruction", "--tokenizer", tokenizer, "--data", "shapes", "--count", "50"]
    run(["evaluate", *spec, *words, f"{folder}/r-{name}.json"])


def test_two_processes_give_the_numbers_of_one(inception: Path, artifacts: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tokenizer = str(artifacts / "tokenizer")
    (save_pngs(inception / "broken", shapes("val", 12)) / "009.png").write_bytes(b"no picture")
    torch.multiprocessing.spawn(of_one_process, args=(str(inception), tokenizer, port), nprocs=2)
    both(inception, tokenizer, "one")
    for kind in "gr":
        one, two = (json.loads((inception / f"{kind}-{name}.json").read_text()) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            if isinstance(value, float):
                assert two[key] == pytest.approx(value, rel=1e-7), key
            else:
                assert two[key] == value, key


def test_what_a_flow_was_integrated_with_is_in_the_record(sets: Path, tmp_path: Path) -> None:
    """No weight tells the steps of a decoder that draws."""
    records = []
    for steps in (2, 3):
        demo = Path(__file__).parents[2] / "experiments"
        files = [demo / "demo" / "tokenizer-stage2.yaml", demo / "ideas" / "flow-decoder.yaml"]
        config = small.small(compose_run(files, [f"--model.tokenizer.decoder.sampler.steps={steps}"]))
        block = config["model"]["init_args"]["tokenizer"]
        torch.manual_seed(0)
        save_artifact(tmp_path / str(steps), block, build(block), {"kind": "tokenizer"})
        words = ["--reconstruction", "--tokenizer", tmp_path / str(steps), "--data", "shapes", "--count", 4]
        records.append(evaluate(sets, *words)["tokenizer"])
    assert records[0]["digest"] == records[1]["digest"]
    assert [json.loads(record["decoder"])["init_args"]["sampler"]["init_args"]["steps"] for record in records] == [2, 3]
    run(["reconstruct", "--tokenizer", str(tmp_path / "2"), str(sets / "shapes"), "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").iterdir())) >= 12

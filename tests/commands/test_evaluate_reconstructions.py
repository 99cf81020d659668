"""`alitok evaluate --reconstruction`, the distance of codes, and several processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import against, evaluate, save_pngs, shapes
from PIL import Image

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.distributed import process_group
from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.common.random import stream
from alitok.config import compose_run
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.sources import Source, open_source
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.code_distance import CodeHistograms
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.evaluation.image_sets import Reader, SourceImages
from alitok.studies import small

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


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
    assert widths == [2 * 130 + 2, 4 * 130 + 2]  # originals and decoded, then the two ends of the perturbations
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


def trained_on_pets(artifacts: Path, folder: Path, share: float, count: int | None = None) -> tuple[Path, Path]:
    """A data set of 100 pictures, and a tokenizer whose card says that training held out this share of them."""
    data = folder / "pets"
    data.mkdir()
    random = np.random.default_rng(0)
    for name in "ab":
        save_pngs(data / name, random.integers(0, 256, (50, 32, 32, 3), np.uint8))
    module = ImageNetDataModule(str(data), image_size=32, val_fraction=share, count=count)
    module.setup("fit")
    tokenizer = load_tokenizer(artifacts / "tokenizer")
    card = {"kind": "tokenizer", "data": module.description}
    save_artifact(folder / "tokenizer", tokenizer.block, tokenizer, card)
    return data, folder / "tokenizer"


@pytest.mark.parametrize("count", [None, 30])
def test_the_images_of_an_rfid_are_those_that_training_held_out(
    sets: Path, artifacts: Path, tmp_path: Path, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tokenizer = trained_on_pets(artifacts, tmp_path, 0.02, count)
    words = ["--reconstruction", "--tokenizer", tokenizer, "--data", data]
    record = evaluate(sets, *words)
    assert record["samples"]["count"] == 2
    assert record["samples"]["digest"] == digest_of(open_source(str(data), "val", val_fraction=0.02))
    assert any("held out of the training split" in reason for reason in record["reasons"])
    assert not any("in training" in reason for reason in record["reasons"])
    assert "in training" not in capsys.readouterr().err
    (data / "a" / "000.png").unlink()
    (data / "a" / "001.png").unlink()
    sentence = "in training 2 of 100 images were held out, now 2 of 98 images are: files were added or removed"
    assert any(sentence in reason for reason in evaluate(sets, *words)["reasons"])
    assert sentence in capsys.readouterr().err


def digest_of(source: Source) -> str:
    reader = Reader(SourceImages(source, 32))
    list(reader)
    return reader.digest()


@pytest.mark.parametrize("count", [None, 30])
def test_an_rfid_of_images_that_were_trained_on_says_so(
    sets: Path, artifacts: Path, tmp_path: Path, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tokenizer = trained_on_pets(artifacts, tmp_path, 0, count)
    reasons = evaluate(sets, "--reconstruction", "--tokenizer", tokenizer, "--data", data)["reasons"]
    sentence = "nothing was held out in training: these images were trained on"
    assert sentence in reasons
    assert not any("held out of the training split" in reason for reason in reasons)
    assert sentence in capsys.readouterr().err

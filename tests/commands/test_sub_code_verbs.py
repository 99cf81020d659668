"""Tokens of several sub-codes pass through every verb: tokenize, probe, describe, reconstruct, sample, rfid."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer, save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.data.pictures import center_crop, to_tensor
from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache
from alitok.networks.classifier import Classifier
from alitok.sampling.images import largest_batch, sample_images

ROOT = Path(__file__).parents[2] / "experiments"
SUB_CODES, CODES = 2, 16


@pytest.fixture(scope="module")
def pair(golden, small_tokenizer_block, small_generator_block, tmp_path_factory) -> Path:
    """A folder with a tokenizer of 2 sub-codes of 16 codes and a generator of its tokens."""
    folder: Path = tmp_path_factory.mktemp("pair")
    block: dict[str, Any] = small_tokenizer_block(2)
    block["init_args"]["quantizer"] = {
        "class_path": "alitok.ideas.lookup_free.LookupFreeQuantizer",
        "init_args": {"codebook_size": CODES, "sub_codes": SUB_CODES},
    }
    card = save_artifact(folder / "tokenizer", block, golden.randomize(build(block)), {"kind": "tokenizer"})
    block = small_generator_block(codebook_size=CODES, sub_codes=SUB_CODES)
    block["class_path"] = "alitok.ideas.shared.sub_codes.SubCodeGenerator"
    names = ["circle", "square", "star"]
    content = {"kind": "generator", "class_names": names, "tokenizer": card["digest"], "guidance": 3.0, "seed": 5}
    save_artifact(folder / "generator", block, golden.randomize(build(block)), content)
    return folder


def words(*items: object) -> list[str]:
    return [str(item) for item in items]


def test_tokenize_and_probe(pair: Path, tmp_path: Path) -> None:
    source = ["--tokenizer", pair / "tokenizer", "--data", "shapes"]
    run(words("tokenize", *source, "--count", 12, "--crops", "center", "--out", tmp_path / "tokens"))
    cache = TokenCache(tmp_path / "tokens")
    assert (cache.views, cache.num_tokens, cache.sub_codes, cache.codebook_size) == (1, 21, SUB_CODES, CODES)
    tokenizer, source_images = load_tokenizer(pair / "tokenizer"), open_source("shapes", "train", size=32, count=12)
    images = torch.stack([to_tensor(center_crop(source_images[place][0], 32)) for place in range(12)])
    ids = cache.gather(torch.arange(12), torch.zeros(12, dtype=torch.int64))
    assert (ids == tokenizer.encode(images.float() / 255)).float().mean() > 0.99  # but for rounding near 0
    few = ["--steps", 2, "--width", 64, "--depth", 1, "--batch", 8, "--json", tmp_path / "probe.json"]
    run(words("probe", *source, "--images", 20, "--held-out", 8, *few))
    record = json.loads((tmp_path / "probe.json").read_text())
    assert (record["sub_codes"], record["bits_per_token"], record["bits_per_picture"]) == (2, 8.0, 168.0)
    assert record["nats_per_picture"] == pytest.approx(21 * record["token_nats"])


def test_sample_and_reconstruct(pair: Path, tmp_path: Path) -> None:
    models = ["--generator", pair / "generator", "--tokenizer", pair / "tokenizer"]
    run(words("sample", *models, "--count", 5, "--batch", 2, "--out", tmp_path / "samples.npz"))
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (5, 32, 32, 3)
        assert len(np.unique(file["arr_0"].reshape(5, -1), axis=0)) == 5
        Image.fromarray(file["arr_0"][0]).save(tmp_path / "picture.png")
    tokenizer = load_tokenizer(pair / "tokenizer")
    generator = load_generator(pair / "generator")
    for _, ids, images in sample_images(generator, tokenizer, [0, 1], Draw(seed=5), batch=2):
        assert ids.shape == (2, 21, SUB_CODES)
        torch.testing.assert_close(images, tokenizer.decode(ids), rtol=1e-4, atol=1e-5)
    run(words("reconstruct", "--tokenizer", pair / "tokenizer", tmp_path / "picture.png", "--out", tmp_path / "out"))
    assert (tmp_path / "out" / "picture.png").is_file()


def test_reconstructions_are_evaluated(pair: Path, artifacts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Classifier(width=8, num_classes=3).save(tmp_path / "classifier")
    source = ["--tokenizer", pair / "tokenizer", "--data", "shapes", "--count", 20]
    to = ["--extractor", tmp_path / "classifier", "--json", tmp_path / "record.json"]
    run(words("evaluate", "--reconstruction", *source, *to))
    record = json.loads((tmp_path / "record.json").read_text())
    assert 0 < record["codebook_usage"] <= 1
    assert 1 <= record["codebook_perplexity"] <= CODES


def test_pairs_are_held_to_their_sub_codes(pair: Path, artifacts: Path, small_generator_block: Any) -> None:
    tokenizer = load_tokenizer(pair / "tokenizer")
    check_pair(load_generator(pair / "generator"), tokenizer)
    with pytest.raises(BadInput, match="knows 1 sub-codes a token and the tokenizer has 2"):
        check_pair(build(small_generator_block(codebook_size=CODES)), tokenizer)


def test_logits_of_all_sub_codes_count_for_the_batch(pair: Path) -> None:
    generator, tokenizer = load_generator(pair / "generator"), load_tokenizer(pair / "tokenizer")
    whole = largest_batch(generator, tokenizer, Draw(2.0), 10**8)
    generator.sub_codes = 200
    assert largest_batch(generator, tokenizer, Draw(2.0), 10**8) < whole


@pytest.mark.parametrize(
    ("files", "part", "bits"),
    [
        (("demo/tokenizer-stage1", "ideas/fsq"), "tokenizer.encoder", 12.095),
        (("demo/generator", "ideas/wetok-generator"), "generator", 32.0),
    ],
)
def test_describe_says_bits(files: tuple[str, ...], part: str, bits: float, capsys: Any) -> None:
    configs = [item for file in files for item in ("-c", ROOT / f"{file}.yaml")]
    configs += [f"--model.{part}.depth", 1, "--hardware", "H100"]
    run(words("describe", *configs, "--json"))
    record = json.loads(capsys.readouterr().out)
    assert record["bits_per_token"] == pytest.approx(bits, abs=1e-3)
    assert record["bits_per_picture"] == pytest.approx(72 * bits, abs=0.1)
    run(words("describe", *configs))
    assert f"{72 * bits:,.0f}" in capsys.readouterr().out

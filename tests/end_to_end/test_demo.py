"""The whole line at the smallest size: two stages, tokens, generator, samples, measures, report."""

import importlib
import json
import re
import shlex
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny import tiny

from alitok.cli import Parser, main
from alitok.data.reading import read_all
from alitok.data.shapes import Shapes
from alitok.evaluation.extractors import open_extractor
from alitok.evaluation.fid import FeatureStatistics
from alitok.reports.curves import read_curves
from alitok.studies import demo_plan
from alitok.training.launch import run

QUICK = ["--trainer.val_check_interval", "2", "--trainer.callbacks.checkpoint.every_n_train_steps", "2"]
STEPS = {
    "tokenizer-stage1": ["--model.phases.continuous.steps", "2", "--model.phases.main.steps", "2"],
    "tokenizer-stage2": ["--model.phases.main.steps", "2"],
    "generator": ["--model.phases.main.steps", "2"],
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    configs, out = folder / "my configs", folder / "my out"
    configs.mkdir()
    for name, steps in STEPS.items():
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(tiny(name, out, *QUICK, *steps)))
    words = ["demo", "--out", str(out), "--config", str(configs), "--images", "20", "--samples", "20", "--minutes", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_plan, "has_compiler", lambda: False)  # a compiled step takes half a minute
        for _ in range(2):  # the second time everything but the report is there already
            main([*words, "--classifier-steps", "5", "--precision", "32-true"])
    return out


def test_the_numbers_that_programs_read(demo: Path) -> None:
    numbers = json.loads((demo / "report.json").read_text())
    shares = ("codebook_usage", "ar_accuracy", "class_agreement")
    assert all(0 <= numbers[name] <= 1 for name in shares)
    assert all(numbers[name] > 0 for name in ("psnr_stage1", "psnr_stage2", "fid", "fid_real", "peak_memory_bytes"))
    assert set(numbers["seconds"]) == {
        "classifier",
        "stage1",
        "stage2",
        "tokenize",
        "generator",
        "samples and measures",
    }


def test_what_a_person_looks_at(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 60
    for name in ("samples.png", "stage1/curves.png", "stage1/pictures", "generator/pictures", "tokens/alitok.json"):
        assert (demo / name).exists(), name
    wrong = 1 - json.loads((demo / "report.json").read_text())["class_agreement"]
    assert page.count('<figcaption class="other">') == round(20 * wrong)  # of 20 samples, all of which are shown


def test_the_commands_of_the_page_are_understood(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    blocks = [unescape(re.sub("<[^>]+>", "", block)) for block in re.findall("<code>(.*?)</code>", page, re.DOTALL)]
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("alitok ")]
    assert [words[1] for words in commands] == ["app", "sample", "reconstruct", "fit", "compare", "demo"]
    for _, verb, *words in commands:
        module = importlib.import_module(f"alitok.commands.{verb}")
        parser = Parser()
        module.add_arguments(parser)
        (parser.parse_known_args if getattr(module, "TAKES_OVERRIDES", False) else parser.parse_args)(words)
        if verb == "app":
            args = parser.parse_args(words)
            assert all(Path(path).is_dir() for path in [*args.generator, *args.tokenizer])
        if verb == "fit":
            assert words[:2] == ["-c", str(demo.with_name("my configs") / "generator.yaml")]


@pytest.mark.parametrize(("stage", "picture"), [("stage1", "reconstruction"), ("generator", "samples")])
def test_what_tensorboard_shows(demo: Path, stage: str, picture: str) -> None:
    (file,) = {path.parent for path in (demo / stage / "logs").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(file), size_guidance={"images": 0, "tensors": 0, "histograms": 0})
    events.Reload()

    def text(name: str) -> str:
        return str(events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode())

    card = json.loads((demo / stage / "artifact" / "card.json").read_text())
    stored = [Image.open(path) for path in sorted((demo / stage / "pictures").glob("*.png"))]
    shown = [Image.open(BytesIO(image.encoded_image_string)) for image in events.Images(picture)]
    assert shown
    assert [np.asarray(image).tolist() for image in shown] == [np.asarray(image).tolist() for image in stored]
    captions = {
        "reconstruction": "Rows of originals, each above its reconstructions.",
        "samples": f"Columns: {', '.join(card['class_names'])}; guidance 2.5.",
    }
    assert text(f"{picture}/caption") == captions[picture]
    assert json.loads(text("card")) == card
    assert ("codes" in events.Tags()["histograms"]) == (stage == "stage1")
    plugins = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["model/class_path"].string_value.startswith("alitok.training.")


def test_artifacts_belong_together(demo: Path) -> None:
    cards = {
        n: json.loads((demo / n / "artifact" / "card.json").read_text()) for n in ("stage1", "stage2", "generator")
    }
    assert cards["stage1"]["digest"] == cards["stage2"]["digest"] == cards["generator"]["tokenizer"]
    assert cards["generator"]["class_names"] == cards["stage1"]["class_names"]


def test_more_samples_by_name(demo: Path, tmp_path: Path) -> None:
    artifacts = ["--generator", str(demo / "generator/artifact"), "--tokenizer", str(demo / "stage2/artifact")]
    main(["sample", *artifacts, "--classes", "star,heart", "--per-class", "1", "--out", str(tmp_path / "stars.png")])
    assert (tmp_path / "stars.png").is_file()


def test_validate_measures_fid_and_inception_score_by_callback(demo: Path) -> None:
    extractor = open_extractor(str(demo / "classifier"), "cpu")
    reference = FeatureStatistics(extractor.num_features)
    reference.update(extractor(read_all(Shapes("val", 32, count=30), 32)[0]).pooled)
    reference.save(demo / "reference.npz")

    def measured(batch: int) -> dict[str, float]:
        arguments = {
            "tokenizer": str(demo / "stage2" / "artifact"),
            "extractor": str(demo / "classifier"),
            "reference": str(demo / "reference.npz"),
            "count": 12,
            "batch": batch,
        }
        block = {"class_path": "alitok.callbacks.metrics.Generation", "init_args": arguments}
        run("validate", tiny("generator", demo, "--trainer.callbacks.generation", json.dumps(block)))
        return {name: points[-1][1] for name, points in read_curves(demo / "generator").items()}

    whole, parts = measured(12), measured(5)
    assert whole["val/fid"] > 0
    assert whole["val/inception_score"] >= 1
    for name in ("val/fid", "val/inception_score"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3)

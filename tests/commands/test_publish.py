"""`alitok publish`: the model card, what is refused, and the upload to a hub of our own on loopback."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import yaml
from fake_hub import Hub, private
from huggingface_hub import ModelCard
from PIL import Image

from alitok.artifacts.folder import load_tokenizer
from alitok.cli import main, run
from alitok.common.errors import BadInput


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, which the library takes for huggingface.co."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its store speaks another protocol
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def record(artifacts: Path, tmp_path: Path) -> Path:
    content = {
        "measure": "rFID",
        "samples": {"name": "val", "digest": "a" * 64, "count": 300, "image_size": 32},
        "reference": {"name": "/data/secret/val.npz", "digest": "b" * 64},
        "extractor": {"name": "random:0", "digest": "c" * 64},
        "tokenizer": {
            "name": "x",
            "digest": json.loads((artifacts / "tokenizer" / "card.json").read_text())["digest"],
        },
        "protocol": "adm",
        "resize": "none",
        "quantisation": "truncate",
        "rfid": 1.25,
        "psnr": 21.5,
        "fid": None,
        "reasons": ["300 images instead of the 50,000 of the validation split"],
    }
    (tmp_path / "rfid.json").write_text(json.dumps(content))
    return tmp_path / "rfid.json"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    *others, last = capsys.readouterr().err.splitlines()  # the library reports its own retries and progress
    assert not [line for line in others if "Traceback" in line]
    return last


def test_a_dry_run_writes_what_would_be_uploaded(artifacts: Path, record: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(grid)
    out = tmp_path / "out"
    words = ["publish", str(artifacts / "tokenizer"), "me/shapes", "--license", "mit", "--dry-run", str(out)]
    run([*words, "--record", str(record), "--grid", str(grid)])
    names = {"README.md", "card.json", "config.yaml", "model.safetensors", "samples.png"}
    assert {path.name for path in out.iterdir()} == names
    assert load_tokenizer(out).card["digest"] == load_tokenizer(artifacts / "tokenizer").card["digest"]
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.license, card.data.model_name) == ("alitok", "mit", "shapes")
    assert "image-tokenizer" in card.data.tags
    found = {result.metric_name: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {"rFID": 1.25, "PSNR (dB)": 21.5}
    arguments = found["rFID"].metric_args
    assert (arguments["protocol"], arguments["images"]) == ("adm", 300)
    assert arguments["reference"] == f"val.npz ({'b' * 12})"
    text = (out / "README.md").read_text()
    assert "](samples.png)" in text
    assert "300 images instead of the 50,000" in text
    assert "secret" not in text
    assert 'alitok.load_tokenizer("me/shapes")' in text
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["name"] == "shapes"
    run(words)  # over the dry run before; no grid any more
    assert {path.name for path in out.iterdir()} == names - {"samples.png"}


def test_the_lines_of_the_card_load_the_pair(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("generator", "tokenizer"):
        words = ["publish", str(artifacts / name), f"me/{name}", "--dry-run", f"me/{name}"]
        run([*words, *(["--tokenizer", "me/tokenizer"] if name == "generator" else [])])
    text = Path("me/generator/README.md").read_text()
    assert "circle, square, star" in text
    space: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], space)
    assert space["images"].shape == (2, 3, 32, 32)
    exec(Path("me/tokenizer/README.md").read_text().split("```python\n")[1].split("```")[0], space)
    assert space["images"].shape == (2, 3, 32, 32)


def test_the_newest_grid_of_the_run_is_taken(artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "tokenizer", tmp_path / "run" / "artifact")
    (tmp_path / "run" / "pictures").mkdir()
    for step, color in ((100, "red"), (20, "blue")):
        Image.new("RGB", (4, 4), color).save(tmp_path / "run" / "pictures" / f"samples-{step:07d}.png")
    run(["publish", str(tmp_path / "run" / "artifact"), "me/shapes", "--dry-run", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "samples.png") as taken:
        assert taken.getpixel((0, 0)) == (255, 0, 0)


def test_an_upload(artifacts: Path, hub: Hub, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artifacts / "tokenizer"
    run(["publish", str(folder), "me/shapes", "--license", "mit", "--record", str(record)])
    assert f"{hub.address}/me/shapes" in capsys.readouterr().out
    assert set(hub.files) == {"README.md", "card.json", "config.yaml", "model.safetensors"}
    for name in ("card.json", "config.yaml", "model.safetensors"):
        assert hub.files[name] == (folder / name).read_bytes()
    assert b"rFID" in hub.files["README.md"]
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.created[0]["name"] == "shapes"
    assert private(hub.created[0]) is None  # as the owner's default is
    run(["publish", str(folder), "me/shapes", "--private"])
    assert hub.uploads == 1  # the weights are there already
    assert private(hub.created[1]) in (True, "private")


def test_parts_of_an_earlier_version_go(artifacts: Path, hub: Hub) -> None:
    hub.files = dict.fromkeys(
        ["discriminator.yaml", "discriminator.safetensors", "notes.md", "more/old.safetensors", "config.yaml"], b"old"
    )
    run(["publish", str(artifacts / "tokenizer"), "me/shapes"])
    own = {"README.md", "card.json", "config.yaml", "model.safetensors"}
    assert hub.files.keys() == own | {"notes.md", "more/old.safetensors"}
    assert hub.files["config.yaml"] != b"old"


def test_an_interrupted_upload_leaves_nothing_and_goes_on(
    artifacts: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.breaks = 99
    words = ["publish", str(artifacts / "tokenizer"), "me/shapes"]
    sentence = refused(words, capsys)
    assert "alitok: me/shapes is not published: " in sentence
    assert "the same command sends what is missing" in sentence
    assert hub.uploads
    assert not hub.files
    hub.breaks = 0
    run(words)
    assert hub.files["model.safetensors"] == (artifacts / "tokenizer" / "model.safetensors").read_bytes()


def test_a_hub_that_is_not_there(
    artifacts: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "is not published" in refused(["publish", str(artifacts / "tokenizer"), "me/shapes"], capsys)


def test_without_a_token(
    artifacts: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    sentence = refused(["publish", str(artifacts / "tokenizer"), "me/shapes"], capsys)
    assert "There is no token for the hub: run `hf auth login`, or set HF_TOKEN" in sentence
    assert not hub.created


@pytest.mark.parametrize("place", ["config.yaml", "extra.yaml", "card.json"])
def test_classes_of_other_packages_are_refused_by_name(artifacts: Path, tmp_path: Path, hub: Hub, place: str) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifacts / "tokenizer", folder)
    if place == "card.json":
        card = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(card | {"schedule": "mine.Guidance"}))
    else:
        (folder / place).write_text(yaml.safe_dump({"class_path": "mine.Guidance", "init_args": {}}))
        shutil.copyfile(folder / "model.safetensors", folder / "extra.safetensors")
    with pytest.raises(BadInput, match=rf"{place} names mine\.Guidance, and an artifact of the hub may only name"):
        run(["publish", str(folder), "me/shapes"])
    assert not hub.tokens


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["shapes"], "'shapes' is no name on the hub"),
        (["me/../x"], "is no name on the hub"),
        (["me/shapes", "--license", "my own\nlicense"], "is no identifier of the hub"),
        (["me/shapes", "--record", "BAD"], "is not readable JSON"),
        (["me/shapes", "--grid", "BAD"], "its format is not known"),
    ],
)
def test_what_the_hub_would_not_take(artifacts: Path, tmp_path: Path, more: list[str], sentence: str) -> None:
    (tmp_path / "bad").write_text("{")
    words = [str(tmp_path / "bad") if word == "BAD" else word for word in more]
    with pytest.raises(BadInput, match=sentence):
        run(["publish", str(artifacts / "tokenizer"), *words, "--dry-run", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_model(artifacts: Path, record: Path, tmp_path: Path) -> None:
    words = ["publish", str(artifacts / "stranger"), "me/shapes", "--record", str(record)]
    with pytest.raises(BadInput, match="give the record of this one"):
        run([*words, "--dry-run", str(tmp_path / "out")])


def test_a_folder_of_something_else_stays(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "README.md").write_text("a repository")
    (tmp_path / "card.json").write_text("{}")
    for out in (tmp_path, artifacts / "tokenizer"):
        with pytest.raises(BadInput, match=r"something else than a dry run|is the artifact itself"):
            run(["publish", str(artifacts / "tokenizer"), "me/shapes", "--dry-run", str(out)])
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.parametrize("out", ["", ".", "..", "../../x/..", "here/.."])
def test_the_current_folder_and_those_around_it_stay(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(BadInput, match="is the current folder or one around it"):
        run(["publish", str(artifacts / "tokenizer"), "me/shapes", "--dry-run", out])
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


LONG = 'You don\'t have the rights to create a model under the namespace "me"'


@pytest.mark.parametrize(
    ("status", "headers", "body", "sentence"),
    [
        (403, {"X-Request-Id": "Root=1"}, json.dumps({"error": LONG}), f"the token may not write there ({LONG}); take"),
        (403, {"X-Error-Message": LONG}, "", f"the token may not write there ({LONG}); take a token that may"),
        (401, {"X-Request-Id": "1"}, '{"error": "Invalid username or password."}', "refuses the token (Invalid user"),
        (401, {}, "", "refuses the token (HTTP status 401, without a word); run `hf auth login`, or set HF_TOKEN"),
        (400, {"X-Request-Id": "1"}, '{"error": "Bad license."}', "not published: the hub refuses it (Bad license)."),
        (
            502,
            {"Content-Type": "text/html"},
            "<html>oops</html>",
            "(HTTP status 502, without a word); try again later.",
        ),
        (
            200,
            {"Content-Type": "text/html"},
            "<html>log in</html>",
            "does not answer as a hub does; look at HF_ENDPOINT",
        ),
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_hub(
    artifacts: Path,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    body: str,
    sentence: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.refusal = status, headers, body.encode()
    said = refused(["publish", str(artifacts / "tokenizer"), "me/shapes"], capsys)
    assert sentence in said
    for word in ("Request ID", "Expecting value", "sends what is missing", "<html>"):
        assert word not in said
    assert not hub.files


def with_card(folder: Path, out: Path, **values: Any) -> Path:
    """A copy of an artifact with other values in its card."""
    shutil.copytree(folder, out)
    card = json.loads((out / "card.json").read_text())
    (out / "card.json").write_text(json.dumps(card | values))
    return out


def dry(artifact: Path, out: Path, *more: str) -> str:
    """The README of a dry run."""
    run(["publish", str(artifact), "me/shapes", "--dry-run", str(out), *more])
    return (out / "README.md").read_text()


def test_paths_of_this_machine_stay_here_or_are_named(
    artifacts: Path, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"reasons": ["made of /home/jane/x.npz"]}))
    data = "train: 5 images in token cache /home/jane/runs/tokens; val: ~/Jane Doe/shapes, 64 x 64"
    folder = with_card(artifacts / "tokenizer", tmp_path / "a", data=data, note={"from": ["C:\\jane\\x"]})
    text = dry(folder, tmp_path / "out", "--record", str(record))
    assert "train: 5 images in token cache tokens; val: shapes, 64 x 64" in text
    assert "made of x.npz" in text
    assert "jane" not in text.lower()
    said = capsys.readouterr().out.splitlines()
    assert "alitok: paths of this machine will be public, in card.json: data, card.json: note.from.0." in said
    dry(artifacts / "tokenizer", tmp_path / "none")
    assert "paths of this machine" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["schedule", "sampler"])
@pytest.mark.parametrize("argument", [{"checkpoint": "runs/weak"}, {"weights": "/home/jane/weak"}])
def test_a_way_of_drawing_that_reads_a_file_is_refused(
    artifacts: Path, tmp_path: Path, key: str, argument: dict[str, str]
) -> None:
    block = {"class_path": "alitok.ideas.autoguidance.WeakerGenerator", "init_args": argument}
    folder = with_card(artifacts / "generator", tmp_path / "a", **{key: block})
    with pytest.raises(BadInput, match=r"draws with .*weak \(\w+\.init_args\.\w+\), which nobody else can load"):
        dry(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_card_are_refused(artifacts: Path, tmp_path: Path) -> None:
    for kind in ("tokenizer", "generator"):
        for digest in ("0" * 64, None):
            folder = with_card(artifacts / kind, tmp_path / f"{kind}{digest}", digest=digest)
            with pytest.raises(BadInput, match=r"have the digest \w{12}, and card\.json says"):
                dry(folder, tmp_path / "out")


def test_records_of_a_generator(artifacts: Path, record: Path, tmp_path: Path) -> None:
    content = json.loads(record.read_text()) | {"reasons": []}
    own = json.loads((artifacts / "generator" / "card.json").read_text())

    def text(number: int, **values: Any) -> str:
        record.write_text(json.dumps(content | values))
        return dry(artifacts / "generator", tmp_path / f"out{number}", "--record", str(record))

    assert "These numbers are of the generator's tokenizer." in text(1)
    for theirs in ({"name": "x", "digest": "d" * 64}, {"name": "x"}, None):
        with pytest.raises(BadInput, match=r"measured the tokenizer \w+, and the generator's is"):
            text(2, tokenizer=theirs)
    gfid = {"measure": "gFID", "rfid": None, "fid": 3.0}
    untied = text(3, **gfid, tokenizer=None)
    assert "Nothing ties these numbers to this model: the record names no generator by its digest." in untied
    assert "may be compared with published" not in untied
    tied = text(4, **gfid, generator={"name": "x", "digest": own["digest"]})
    assert "These numbers may be compared with published ones." in tied
    assert "Nothing ties" not in tied


@pytest.mark.parametrize(
    "wrong",
    [
        {"fid": "low"},
        {"fid": float("nan")},
        {"rfid": float("inf")},
        {"rfid": 10**400},
        {"psnr": True},
        {"generator": {"digest": 5}},
        {"tokenizer": "x"},
        {"reference": {"name": "x"}},
        {"extractor": ["x"]},
        {"reasons": "none"},
        {"seed": [1]},
        {"measure": 5},
        {"samples": {"count": "many"}},
    ],
)
def test_a_record_with_odd_values(artifacts: Path, record: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | wrong))
    with pytest.raises(BadInput, match=r"rfid\.json (has|is not readable JSON \()"):
        dry(artifacts / "tokenizer", tmp_path / "out", "--record", str(record))


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_names": 5},
        {"class_names": [1, 2]},
        {"metrics": {"psnr": float("nan")}},
        {"metrics": [1]},
        {"parents": "x"},
        {"digest": 5},
        {"tokenizer": {}},
    ],
)
def test_a_card_with_odd_values(artifacts: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = with_card(artifacts / "tokenizer", tmp_path / "a", **wrong)
    with pytest.raises(BadInput, match=r"card\.json has "):
        dry(folder, tmp_path / "out")


def test_a_generator_without_its_tokenizer(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dry(artifacts / "generator", tmp_path / "out")
    assert 'alitok.load_tokenizer("OWNER/NAME")  # give the folder or hub name of the tokenizer with' in text
    assert "alitok: no --tokenizer: the card cannot say from where" in capsys.readouterr().out
    with pytest.raises(BadInput, match="is no name on the hub"):
        dry(artifacts / "generator", tmp_path / "other", "--tokenizer", "/home/jane/tokenizer")

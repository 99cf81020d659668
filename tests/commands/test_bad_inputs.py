"""Every verb with what people hand it by mistake: exit status 2, one line on stderr, no traceback."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alitok.cli import VERBS, main

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 132735\n"
CONTENTS = {
    "text": b"see the README\n",
    "pointer": POINTER,
    "bytes": bytes(range(256)),
    "zip": b"PK\3\4" * 9,
    "empty": b"",
}
PARTS = {"config": "config.yaml", "model": "model.safetensors", "card": "card.json"}
FILES = ["missing", "folder", *CONTENTS]
ARTIFACTS = ["missing", "file", "folder", *(f"{part}={kind}" for part in PARTS for kind in CONTENTS)]
NUMBERS = ["²", "x", "1.5", "--"]

SAMPLE = "sample --device cpu --generator GEN --tokenizer TOK --out OUT/s.png"
EVALUATE = "evaluate SET --reference SET --json OUT/e.json"
TUNE = "tune-guidance --device cpu --generator GEN --tokenizer TOK --reference SET --extractor EXT --out OUT"
REPRODUCE = "reproduce 177M --device cpu --tokenizer-weights PTH --generator-weights PTH --reference SET --out OUT"
PAIRS = "pairs --device cpu --generator GEN --tokenizer TOK --data PETS --out OUT/pairs"
TOKENIZE = "tokenize --device cpu --tokenizer TOK --data PETS --out OUT/cache"
CLASSIFIER = "train-classifier --device cpu --data PETS --out OUT/c"
BASE = "-c experiments/demo/tokenizer-stage1.yaml"

# (words with BAD in the place of one input, the kinds of it, the ending of its name)
CASES = [
    ("import-release BAD --out OUT/a", FILES, ".pth"),
    ("import-release BAD --out OUT/a", FILES, ".bin"),
    ("import-release BAD --out OUT/a", FILES, ".safetensors"),
    ("export-release BAD --out OUT/a.pth", ARTIFACTS, ""),
    (SAMPLE.replace("GEN", "BAD"), ARTIFACTS, ""),
    (SAMPLE.replace("TOK", "BAD"), ARTIFACTS, ""),
    ("reconstruct --device cpu --tokenizer BAD PETS --out OUT/r", ARTIFACTS, ""),
    ("publish BAD me/shapes --dry-run OUT/p", ARTIFACTS, ""),
    ("publish TOK me/shapes --dry-run OUT/p --record BAD", FILES, ".json"),
    ("publish TOK me/shapes --dry-run OUT/p --grid BAD", FILES, ".png"),
    ("app --generator BAD --tokenizer TOK", ARTIFACTS, ""),
    ("app --generator GEN --tokenizer TOK --port BAD", NUMBERS, ""),
    ("reconstruct --device cpu --tokenizer TOK BAD --out OUT/r", FILES, ".png"),
    (TOKENIZE.replace("TOK", "BAD"), ARTIFACTS, ""),
    (TOKENIZE.replace("PETS", "BAD"), FILES, ""),
    (PAIRS.replace("GEN", "BAD"), ARTIFACTS, ""),
    (PAIRS.replace("TOK", "BAD"), ARTIFACTS, ""),
    (PAIRS.replace("PETS", "BAD"), FILES, ""),
    (EVALUATE.replace("SET", "BAD", 1), FILES, ".npz"),
    (EVALUATE.replace("--reference SET", "--reference BAD"), FILES, ".npz"),
    (f"{EVALUATE} --extractor BAD", FILES, ".pt"),
    ("evaluate --reconstruction --tokenizer BAD --data PETS", ARTIFACTS, ""),
    ("evaluate --reconstruction --tokenizer TOK --data BAD", FILES, ""),
    (CLASSIFIER.replace("PETS", "BAD"), FILES, ""),
    ("text-fidelity --device cpu --tokenizer BAD", ARTIFACTS, ""),
    *((f"text-fidelity --device cpu --tokenizer TOK --{name} BAD", NUMBERS, "") for name in ("words", "seed")),
    ("compare BAD --out OUT/page.html", FILES, ""),
    ("check-idea BAD", FILES, ".yaml"),
    ("league --data BAD --out OUT/l", FILES, ""),
    ("league --data PETS --league BAD --out OUT/l", FILES, ".yaml"),
    ("probe BAD", FILES, ""),
    ("probe --tokenizer BAD --data PETS", ARTIFACTS, ""),
    ("probe --tokenizer TOK --data BAD", FILES, ""),
    (REPRODUCE.replace("PTH", "BAD", 1), FILES, ".pth"),
    (REPRODUCE.replace("PTH", "BAD"), FILES, ".bin"),
    (TUNE.replace("GEN", "BAD"), ARTIFACTS, ""),
    (TUNE.replace("TOK", "BAD"), ARTIFACTS, ""),
    (TUNE.replace("EXT", "BAD"), FILES, ".pt"),
    *((f"{verb} -c BAD --define.run OUT", FILES, ".yaml") for verb in ("fit", "validate", "test", "describe")),
    *((f"{verb} {BASE} -c BAD --define.run OUT", FILES[:-1], ".yaml") for verb in ("fit", "describe")),
    (f"fit {BASE} --define.run OUT --define.source BAD", FILES, ""),
    ("fit -c experiments/demo/generator.yaml --define.run OUT --define.cache BAD", FILES, ""),
    (f"fit {BASE} --define.run OUT --model.start_from BAD", ARTIFACTS, ""),
    (f"validate {BASE} --define.run OUT --data.source PETS --ckpt_path BAD", FILES, ".ckpt"),
    (f"trial {BASE} --idea BAD --out OUT/t", FILES, ".yaml"),
    ("trial -c BAD --idea experiments/debug/overfit.yaml --out OUT/t", FILES, ".yaml"),
    ("ablation --data PETS --config BAD --out OUT/a", FILES, ""),
    ("demo --config BAD --out OUT/d", FILES, ""),
    *((f"{SAMPLE} --{name} BAD", NUMBERS, "") for name in ("count", "per-class", "keep", "seed", "batch")),
    (f"{SAMPLE} --guidance BAD", [number for number in NUMBERS if number != "1.5"], ""),
    (f"{SAMPLE} --classes BAD", ["²", "x", "1.5", "-1", "3", ",", "٣"], ""),
    ("reconstruct --device cpu --tokenizer TOK PETS --out OUT/r --keep BAD", ["²", "x", "0", ","], ""),
    *((f"{TOKENIZE} --{name} BAD", NUMBERS, "") for name in ("count", "batch", "workers", "images-per-shard")),
    *((f"{PAIRS} --{name} BAD", NUMBERS[:2], "") for name in ("count", "sigma", "seed")),
    *((f"{EVALUATE} --{name} BAD", NUMBERS, "") for name in ("count", "size", "batch")),
    *((f"{CLASSIFIER} --{name} BAD", NUMBERS, "") for name in ("count", "steps", "size", "width")),
    *((f"{TUNE} --{name} BAD", NUMBERS[:2], "") for name in ("count", "scales", "powers", "refine", "temperature")),
    (f"{REPRODUCE} --count BAD", NUMBERS, ""),
    (f"trial {BASE} --idea experiments/debug/overfit.yaml --out OUT/t --seeds BAD", ["²", "x", "", "1,,2"], ""),
    ("ablation --data PETS --out OUT/a --seeds BAD", ["²", "x", "", "1,,2"], ""),
    ("ablation --data PETS --out OUT/a --guidance BAD", ["²", "x", ""], ""),
    ("probe OUT --prefix BAD", NUMBERS, ""),
    ("demo --out OUT/d --images BAD", NUMBERS, ""),
    (f"describe {BASE} --images BAD", NUMBERS, ""),
    ("bench BAD", ["²", "x"], ""),
    ("bench --batch BAD", NUMBERS, ""),
    ("doctor --full --out BAD --device cpu --tiny --only setup", ["file"], ""),
    ("doctor --full --out OUT/d --only BAD", ["²", "x", ""], ""),
]


# The readers behind the verbs are few: each is tried with everything once, the others with this unless tests are slow.
QUICK = ["missing", "pointer", "model=pointer", "card=pointer", "²"]
THOROUGH = [
    "import-release BAD --out OUT/a",
    SAMPLE.replace("GEN", "BAD"),
    f"{SAMPLE} --classes BAD",
    f"{EVALUATE} --extractor BAD",
    "evaluate BAD --reference SET --json OUT/e.json",
    "probe BAD",
    "describe -c BAD --define.run OUT",
    f"trial {BASE} --idea experiments/debug/overfit.yaml --out OUT/t --seeds BAD",
]


def test_every_verb_is_tried() -> None:
    assert {words.split()[0] for words, _, _ in CASES} == set(VERBS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> dict[str, Path]:
    """What is no mistake."""
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(4):
        path = folder / "pets" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(path)
    np.savez(folder / "set.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    (folder / "w.pth").write_bytes(b"not read before the bad one")
    return {
        "TOK": artifacts / "tokenizer",
        "GEN": artifacts / "generator",
        "PETS": folder / "pets",
        "SET": folder / "set.npz",
        "PTH": folder / "w.pth",
    }


def bad_input(kind: str, folder: Path, suffix: str, artifact: Path) -> Path:
    """What stands in the place of an input: nothing, a folder, a file of wrong contents, an artifact with one."""
    path = folder / f"bad{suffix}"
    part, is_part, content = kind.partition("=")
    if is_part:
        path.mkdir()
        for name in PARTS.values():
            (path / name).write_bytes((artifact / name).read_bytes())
        path = path / PARTS[part]
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(CONTENTS.get(content or kind, b"x"))
    return folder / f"bad{suffix}"


@pytest.mark.parametrize(
    ("words", "kind", "suffix"),
    [
        pytest.param(
            *(words, kind, suffix),
            id=f"{words}{suffix}-{kind}".replace("experiments/", ""),
            marks=[] if words in THOROUGH or kind in QUICK else pytest.mark.slow,
        )
        for words, kinds, suffix in CASES
        for kind in kinds
    ],
)
def test_a_mistaken_input_is_one_sentence(
    words: str,
    kind: str,
    suffix: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_file = kind in (*FILES, "file") or "=" in kind
    artifact = inputs["GEN" if "--generator BAD" in words else "TOK"]
    places = {**inputs, "OUT": tmp_path / "out", "EXT": tmp_path / "none.pt"}
    bad = str(bad_input(kind, tmp_path, suffix, artifact)) if is_file else kind
    given = []
    for word in words.split():
        for name, path in places.items():
            word = word.replace(name, str(path)) if word.startswith(name) else word
        given.append(bad if word == "BAD" else word)
    with pytest.raises(SystemExit) as stop:
        main(given)
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert stop.value.code == 2, output.err
    assert len([line for line in lines if line.startswith("alitok: ")]) == 1, output.err
    assert len(lines) == 1, output.err

"""`alitok trial`: ideas against their base over the same seeds, one table."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import DEMO, SMALL

from alitok.cli import run
from alitok.common.build import import_class
from alitok.common.errors import BadInput
from alitok.reports.differences import BASE, table
from alitok.studies import trial
from alitok.studies.trial import measures, plan, source_digest

STEPS = ["--model.phases.continuous.steps", "2", "--model.phases.main.steps", "3", "--trainer.callbacks.grid", "null"]


@pytest.fixture
def idea(tmp_path: Path) -> Path:
    file = tmp_path / "no-prefix-loss.yaml"
    file.write_text("model: {init_args: {losses: {prefix: null}}}\n")
    return file


def words(out: Path, *more: str) -> list[str]:
    return ["trial", "-c", str(DEMO / "tokenizer-stage1.yaml"), "--out", str(out), *more, *SMALL, *STEPS]


def test_every_run_is_trained_and_measured_at_its_end(
    tmp_path: Path, idea: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trial"
    run(words(out, "--idea", str(idea), "--seeds", "0,1"))
    content = json.loads((out / "trial.json").read_text())
    assert [(row["name"], row["seed"]) for row in content["rows"]] == [
        (BASE, 0),
        ("no-prefix-loss", 0),
        (BASE, 1),
        ("no-prefix-loss", 1),
    ]
    for row in content["rows"]:
        assert row["psnr"] > 0
        assert 0 < row["codebook_usage"] <= 1
        assert row["parameters"] > 10_000
        assert row["flops_a_step"] > row["parameters"]
    # the same seed draws the same start, and the idea changed what came of it
    assert content["rows"][0]["psnr"] != content["rows"][1]["psnr"]
    text = (out / "trial.md").read_text()
    assert text.startswith("| 2 seeds | base | no-prefix-loss |\n")
    assert (out / "compare.html").is_file()
    capsys.readouterr()

    run(words(out, "--idea", str(idea), "--seeds", "0,1"))
    assert capsys.readouterr().out.count("is finished (5 steps)") == 4
    assert json.loads((out / "trial.json").read_text())["rows"] == content["rows"]


def test_the_table_says_mean_spread_and_distance_to_the_base() -> None:
    rows = [
        {"name": name, "seed": seed, "seconds": 60.0, "psnr": psnr, **more}
        for name, seed, psnr, more in [
            (BASE, 0, 20.0, {}),
            ("a", 0, 19.0, {"extra": 1.0}),
            (BASE, 1, 22.0, {}),
            ("a", 1, 19.5, {}),
        ]
    ]
    costs = {"parameters": 1234.0, "flops_a_step": 2.5e12}
    head, _, psnr, extra, parameters, flops, seconds = table([{**row, **costs} for row in rows]).splitlines()
    assert head == "| 2 seeds | base | a |"
    assert psnr == "| psnr | 21 dB ± 1.414 dB | 19.25 dB ± 0.3536 dB (-1.75 dB) |"
    assert extra.startswith("| extra | — |")
    assert parameters == "| parameters | 1,234 | 1,234 |"
    assert flops == "| FLOPs a step | 2.5e+12 | 2.5e+12 |"
    assert seconds.startswith("| wall time a run |")
    assert "parameters" not in table(rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--idea", "{idea}", "--idea", "{idea}"], "already; runs are named by their files"),
        (["--idea", "{idea}", "--seeds", "0,x"], "--seeds takes whole numbers"),
        (["--idea", "{nothing}"], "changes nothing of the base's model, data, length or precision"),
        (["--idea", "{missing}"], "Cannot read configuration"),
        ([], "give --idea FILE or --sweep KEY=A,B"),
        (["--idea", "{idea},"], "--idea takes FILE,... and not"),
        (["--sweep", "model.codebook_lr"], "--sweep takes KEY=A,B,... and not 'model.codebook_lr'"),
        (["--sweep", "model.codebook_lr=1,,2"], "--sweep takes KEY=A,B,..."),
        (["--sweep", "model.codebook_lr=2.0,2.0"], "there is a 'codebook_lr=2.0' already"),
        (["--sweep", "model.codebook_lr=10.0"], "--sweep model.codebook_lr=10.0 changes nothing of the base"),
        (["--sweep", "model.codebok_lr=10.0"], "Unknown configuration key"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    tmp_path: Path, idea: Path, more: list[str], said: str
) -> None:
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("define: {}\n")
    names = {"idea": idea, "nothing": nothing, "missing": tmp_path / "missing.yaml"}
    with pytest.raises(BadInput, match=said):
        run(words(tmp_path / "trial", *(word.format(**names) for word in more)))
    assert not (tmp_path / "trial").exists()


def test_each_value_of_a_sweep_is_an_idea(tmp_path: Path, idea: Path) -> None:
    base = [str(DEMO / "tokenizer-stage1.yaml")]
    sweeps = ["model.codebook_lr=1.0,2.0", "--model.losses.vq.class_path=a/b.C"]
    with pytest.raises(BadInput, match="a/b"):
        plan(base, [], sweeps, [0], tmp_path, [])
    plans = plan(base, [str(idea)], sweeps[:1], [0, 3], tmp_path, ["--model.codebook_lr=7.0"])
    found = {(name, seed): config["model"]["init_args"]["codebook_lr"] for name, seed, config in plans}
    assert found == {
        (name, seed): rate
        for name, rate in ((BASE, 7.0), ("no-prefix-loss", 7.0), ("codebook_lr=1.0", 1.0), ("codebook_lr=2.0", 2.0))
        for seed in (0, 3)
    }
    assert plans[2][2]["trainer"]["default_root_dir"] == str(tmp_path / "codebook_lr=1.0" / "seed-0")
    weights = [f"model.phases.main.weights.{name}=0.5" for name in ("mse", "vq")]
    plans = plan(base, [], [*weights, "model.betas=[0.9,0.99],[0.8,0.9]"], [0], tmp_path, [])
    assert [name for name, _, _ in plans] == [
        *(BASE, "mse=0.5", "vq=0.5"),
        *("betas=_0.9_0.99_", "betas=_0.8_0.9_"),
    ]
    assert plans[-1][2]["model"]["init_args"]["betas"] == [0.8, 0.9]


def test_another_configuration_is_not_taken_for_a_finished_run(tmp_path: Path, idea: Path) -> None:
    out = tmp_path / "trial"
    run(words(out, "--idea", str(idea), "--seeds", "0"))
    idea.write_text("model: {losses: {prefix: null}, betas: [0.5, 0.6]}\n")
    with pytest.raises(
        BadInput, match=r"no-prefix-loss/seed-0 was trained with other settings: model.betas.*another folder with --out"
    ):
        run(words(out, "--idea", str(idea), "--seeds", "0"))


def test_runs_of_another_length_or_precision_are_not_compared(tmp_path: Path, idea: Path) -> None:
    out = tmp_path / "trial"
    run(words(out, "--idea", str(idea), "--seeds", "0"))
    for more, said in (
        (["--trainer.max_steps", "4"], "trained 5 steps, which is more than 4"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision: 32-true -> bf16-mixed"),
        (["--data.val_count", "5"], "data.val_count"),
    ):
        with pytest.raises(BadInput, match=said):
            run(words(out, "--idea", str(idea), "--seeds", "0,1", *more))


def test_a_judges_numbers_go_before_those_of_training() -> None:
    for numbers in (
        {"measures: psnr": 30.0, "tokenizer: psnr": 20.0},
        {"tokenizer: psnr": 20.0, "measures: psnr": 30.0},
    ):
        found: Any = SimpleNamespace(folder="run", numbers={**numbers, "tokenizer: mse": 0.1})
        assert measures(found) == {"psnr": 30.0, "mse": 0.1}


def test_the_source_of_a_class_is_that_of_its_parents_and_of_what_ideas_share(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(trial, "code_digest", lambda file: (seen.append(Path(file).stem), Path(file).stem)[1])
    for name, files in (
        ("alitok.ideas.semantic.Semantic", {"semantic", "teachers", "decoder_blocks", "dino"}),
        ("alitok.ideas.patch_flow.PatchFlow", {"patch_flow", "flow", "flow_sampler"}),
        ("alitok.ideas.simvq.SimVQ", {"simvq", "quantizer"}),
        ("alitok.models.decoder.Decoder", {"decoder"}),
        ("torch.nn.Linear", {"linear", "module"}),
    ):
        seen.clear()
        assert source_digest(import_class(name))
        assert set(seen) >= files
        assert not {"seams", "terms"} & set(seen)


def test_an_idea_that_diverges_does_not_end_the_trial(tmp_path: Path, idea: Path) -> None:
    out = tmp_path / "trial"
    run(words(out, "--sweep", "model.phases.main.lr=1e30", "--idea", str(idea), "--seeds", "0"))
    content = json.loads((out / "trial.json").read_text())
    assert [row["name"] for row in content["rows"]] == [BASE, "no-prefix-loss"]
    assert "lr=1e30, seed 0, failed: " in (out / "trial.md").read_text()


def test_a_run_whose_numbers_are_not_finite_is_named_and_the_others_are_compared(tmp_path: Path, idea: Path) -> None:
    out = tmp_path / "trial"
    again = words(out, "--sweep", "model.warmup_steps=1", "--idea", str(idea), "--seeds", "0")
    run(again)
    card = out / "no-prefix-loss" / "seed-0" / "artifact" / "card.json"
    content = json.loads(card.read_text())
    content["metrics"]["psnr"] = float("nan")
    card.write_text(json.dumps(content))
    run(again)
    content = json.loads((out / "trial.json").read_text())
    assert len(content["rows"]) == 2
    (sentence,) = content["failed"]
    assert "no-prefix-loss, seed 0, failed: " in sentence
    assert "psnr is nan, so the run cannot be compared" in sentence


OWN = """
from alitok.losses.terms import LossTerm

class Own(LossTerm):
    needs = ("latents",)

    def compute(self, batch, outputs, step):
        latents = outputs["latents"]
        return latents.square().mean(){more}
"""


def test_an_own_class_that_breaks_is_named_by_its_line_and_a_changed_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    ideas = []
    for name, more in (("sound_term", ""), ("broken_term", ".absent()")):
        (tmp_path / f"{name}.py").write_text(OWN.replace("{more}", more))
        (tmp_path / f"{name}.yaml").write_text(f"model: {{losses: {{own: {{class_path: {name}.Own}}}}}}\n")
        ideas += ["--idea", str(tmp_path / f"{name}.yaml")]
    out = tmp_path / "trial"
    run(words(out, *ideas, "--seeds", "0"))
    content = json.loads((out / "trial.json").read_text())
    assert [row["name"] for row in content["rows"]] == [BASE, "sound_term"]
    (sentence,) = content["failed"]
    assert "broken_term, seed 0, failed: AttributeError: 'Tensor' object has no attribute 'absent'" in sentence
    assert sentence.endswith("(broken_term.py, line 9)")
    (tmp_path / "broken_term.py").write_text(OWN.replace("{more}", ""))
    monkeypatch.delitem(sys.modules, "broken_term")
    run(words(out, *ideas, "--seeds", "0"))  # nothing was trained with the broken one
    assert json.loads((out / "trial.json").read_text())["rows"][2]["name"] == "broken_term"
    (tmp_path / "sound_term.py").write_text(OWN.replace("{more}", "  # a comment is no change"))
    run(words(out, *ideas[:2], "--seeds", "0"))
    (tmp_path / "sound_term.py").write_text(OWN.replace("{more}", " / 2"))
    with pytest.raises(BadInput, match=r"The code of sound_term.Own has changed since .*sound_term/seed-0 was trained"):
        run(words(out, *ideas[:2], "--seeds", "0"))


PERTURBED = str(DEMO.parent / "ideas" / "perturbation.yaml")


def plans(out: Path, *overrides: str) -> dict[str, dict]:
    base = [str(DEMO / "tokenizer-stage1.yaml")]
    return {name: config for name, _, config in plan(base, [PERTURBED], [], [0], out, overrides)}


@pytest.mark.parametrize(
    ("key", "value"),
    [("bottleneck.beta", 0.5), ("bottleneck.init_args.alpha", 0.25), ("bottleneck.anneal", [0.1, 0.2])],
)
def test_a_key_that_only_an_idea_has_changes_that_idea(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    configs = plans(tmp_path, f"--model.tokenizer.{key}", str(value), "--model.warmup_steps", "7")
    tokenizers = {name: config["model"]["init_args"]["tokenizer"]["init_args"] for name, config in configs.items()}
    assert "bottleneck" not in tokenizers[BASE]
    assert tokenizers["perturbation"]["bottleneck"]["init_args"][key.rpartition(".")[2]] == value
    assert [config["model"]["init_args"]["warmup_steps"] for config in configs.values()] == [7, 7]
    assert capsys.readouterr().out == (
        f"--model.tokenizer.{key} concerns perturbation only: the others have no such key.\n"
    )


def test_a_value_that_only_an_idea_defines_changes_that_idea(tmp_path: Path) -> None:
    file = tmp_path / "factor.yaml"
    file.write_text(
        "define: {f: 3.0}\nmodel: {init_args: {losses: {prefix: {init_args: {mse_weight: '${define.f}'}}}}}\n"
    )
    base = [str(DEMO / "tokenizer-stage1.yaml")]
    configs = [config for _, _, config in plan(base, [str(file)], [], [0], tmp_path, ["--define.f", "4"])]
    weights = [config["model"]["init_args"]["losses"]["prefix"].get("init_args") for config in configs]
    assert "f" not in configs[0]["define"]
    assert (weights[0] or {}).get("mse_weight", 1.0) == 1.0
    assert weights[1]["mse_weight"] == 4.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--model.tokenizer.bottleneck.bta=1", "bottleneck must be a map with the class_path of a Bottleneck"),
        ("--model.tokenizer.widht=1", "Unknown configuration key .*widht"),
        ("--model.tokenizer.other.p=1", "Unknown configuration key .*other"),
        ("--define.levls=1", "no file defines or uses 'levls'"),
    ],
)
def test_a_key_that_none_has_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        plans(tmp_path, override)

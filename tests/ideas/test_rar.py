"""RAR and ORT: which orders are drawn, what a generator makes of them, and both with reAR in one run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import DEMO, GENERATOR, module_of, tiny, train
from torch import Tensor
from torch.testing import assert_close

from alitok.artifacts.folder import load_generator, save_artifact
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.config import compose_run
from alitok.data.shapes import Shapes
from alitok.data.token_shards import write_token_cache
from alitok.ideas.rar import RandomOrder
from alitok.models.generator import Generator, in_order
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.generate import generate
from alitok.sampling.guidance import Guidance, PowerCosine
from alitok.studies.processes import two_processes
from alitok.training.checkpoint import read_checkpoint
from alitok.training.launch import run

TOKENS, PREFIX, IMAGES = 21, 5, 400
CLASS = "alitok.ideas.rar.AnyOrderGenerator"
RASTER = torch.arange(TOKENS)
IDEAS = DEMO.parent / "ideas"
ARTIFACT = Path("generator", "artifact", "model.safetensors")
CHECKPOINT = Path("generator", "checkpoints", "step=7.ckpt")
OPTIONS = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.limit_val_batches", "0"]
OPTIONS += ["--trainer.logger", "false", "--trainer.callbacks.checkpoint.every_n_train_steps", "1"]
for callback in ("samples", "accuracy", "progress", "curves"):
    OPTIONS += [f"--trainer.callbacks.{callback}", "null"]
OPTIONS += ["--trainer.enable_progress_bar", "false", "--model.warmup_steps", "0", "--data.micro_batch", "4"]
# Adam blows gradients that are rounding errors up to whole steps, so the steps are small.
OPTIONS += ["--model.phases.main", "{steps: 8, lr: 1.e-4, shape: linear}", "--model.generator.dropout", "0.0"]
OPTIONS += ["--model.losses.current.hidden", "16", "--model.losses.next.hidden", "16"]
STRATEGIES = {
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "fsdp": ["--trainer.devices", "2", "--trainer.strategy.class_path", "alitok.training.parallel.FSDP2"],
}


def at(number: int, images: range = range(IMAGES), seed: int = 0) -> Step:
    return Step(seed, number, 100, IMAGES, images)


def raster(places: Tensor) -> Tensor:
    return (places == RASTER).all(-1)


@pytest.mark.parametrize(
    ("number", "share"), [(0, 1.0), (49, 1.0), (50, 1.0), (60, 0.6), (70, 0.2), (75, 0.0), (99, 0.0)]
)
def test_random_orders_give_way_to_raster_order(number: int, share: float) -> None:
    order = RandomOrder()
    assert order.probability(number / 100) == pytest.approx(share)
    found = order(TOKENS, PREFIX, at(number))
    assert found.weights is None
    assert torch.equal(found.places.sort(-1).values, RASTER.expand(IMAGES, -1))
    assert 1 - raster(found.places).float().mean() == pytest.approx(share, abs=0.08)


def test_random_orders_are_uniform() -> None:
    places = RandomOrder()(TOKENS, PREFIX, at(0)).places
    counts = torch.nn.functional.one_hot(places, TOKENS).sum(0).float()  # (step, place), 19 each
    assert (counts - IMAGES / TOKENS).abs().max() < 5 * (IMAGES / TOKENS) ** 0.5


def test_the_prefix_may_stay_in_front() -> None:
    places = RandomOrder(permute="image")(TOKENS, PREFIX, at(0)).places
    assert torch.equal(places[:, :PREFIX], RASTER[:PREFIX].expand(IMAGES, -1))
    assert torch.equal(places[:, PREFIX:].sort(-1).values, RASTER[PREFIX:].expand(IMAGES, -1))
    assert not raster(places).any()
    with pytest.raises(BadInput, match="permute image finds no image tokens"):
        RandomOrder(permute="image")(TOKENS, TOKENS, at(0))


@pytest.mark.parametrize(("first", "last"), [(1.0, 0.0), (0.75, 1.25)])
def test_weights_are_of_random_orders_alone(first: float, last: float) -> None:
    found = RandomOrder(first=first, last=last)(TOKENS, PREFIX, at(62))
    plain = raster(found.places)
    assert found.weights is not None
    assert 0 < plain.sum() < IMAGES
    assert (found.weights[plain] == 1).all()
    expected = torch.tensor([first + (last - first) * i / (TOKENS - 1) for i in range(TOKENS)])
    assert_close(found.weights[~plain], expected.expand(int((~plain).sum()), -1))


@pytest.mark.parametrize("number", [0, 62])
def test_the_order_is_a_function_of_seed_step_and_place(number: int) -> None:
    order = RandomOrder(first=1.0, last=0.0)
    state = torch.get_rng_state()
    whole = order(TOKENS, PREFIX, at(number))
    parts = [order(TOKENS, PREFIX, at(number, part)) for part in (range(150), range(150, IMAGES))]
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in vars(whole).items():
        assert torch.equal(value, torch.cat([getattr(part, name) for part in parts]))
    for other in (at(number + 1), at(number, seed=1)):
        assert not torch.equal(whole.places, order(TOKENS, PREFIX, other).places)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": 0.8, "end": 0.7}, "0 <= start <= end <= 1 of the run, not 0.8 and 0.7"),
        ({"end": 1.5}, "not 0.5 and 1.5"),
        ({"permute": "prefix"}, "all or image, not 'prefix'"),
        ({"first": -1.0}, "must not be negative"),
        ({"first": 0.0, "last": 0.0}, "or both 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        RandomOrder(**arguments)


def test_an_order_needs_a_generator_that_can_follow_it(tmp_path: Path) -> None:
    config = tiny("generator", tmp_path)
    config["model"]["init_args"]["order"] = {"class_path": "alitok.ideas.rar.RandomOrder"}
    with pytest.raises(BadInput, match="needs a generator that writes in any order, not Generator"):
        module_of(config)


KINDS = [{}, {"sub_codes": 3, "codebook_size": 8}, {"sub_codes": 3, "codebook_size": 8, "combine": "concatenated"}]


@pytest.fixture(params=KINDS, ids=["plain", "sum", "concatenated"])
def block(request: Any, small_generator_block: Any) -> dict[str, Any]:
    return {**small_generator_block(dropout=0.0, **request.param), "class_path": CLASS}


@pytest.fixture
def small(block: Any, golden: Any) -> Any:
    generator = golden.randomize(build(block))
    generator.output.weight.data *= 3
    return generator


def ids_of(generator: Generator, seed: int = 0) -> Tensor:
    shape = (3, *generator.id_shape)
    return torch.randint(generator.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1])
ORDER = RandomOrder()(TOKENS, PREFIX, at(0, range(3))).places


@torch.no_grad()
def test_without_the_vectors_it_is_the_plain_generator(block: Any, small: Any) -> None:
    name = "sub_code_generator.SubCodeGenerator" if small.sub_codes > 1 else "generator.Generator"
    plain = build({**block, "class_path": f"alitok.models.{name}"}).eval()
    state = small.state_dict()
    vectors = state.pop("next_places")
    plain.load_state_dict(state)
    ids = ids_of(small)
    assert not torch.equal(small(ids, LABELS), plain(ids, LABELS))
    small.next_places.data = torch.zeros_like(vectors)
    assert torch.equal(small(ids, LABELS), plain(ids, LABELS))


@torch.no_grad()
def test_raster_order_by_name_is_no_order(small: Any) -> None:
    ids = ids_of(small)
    given, none = (small.losses(ids, LABELS, order=order) for order in (RASTER.expand(3, -1), None))
    assert_close(given["nats"], none["nats"])
    assert_close(given["hidden"], none["hidden"])


@torch.no_grad()
def test_each_input_has_its_own_place_and_the_vector_of_the_next(small: Any) -> None:
    """Every step of a random order again, alone: the label and the tokens before it, with their angles."""
    ids = ids_of(small)
    outputs = small.losses(ids, LABELS, order=ORDER)
    assert torch.equal(outputs["targets"], in_order(ids, ORDER))
    for image in range(3):
        tokens = small.embed_tokens(ids[image : image + 1])[0]  # by place
        for i in range(TOKENS):
            before = ORDER[image, :i]
            x = torch.cat([small.embed_labels(LABELS[image : image + 1])[0], tokens[before]])
            x = (x + small.next_places[ORDER[image, : i + 1]])[None]
            rope = small.rope[torch.cat([torch.zeros(1, dtype=torch.int64), before + 1])]
            for layer in small.blocks:
                x = layer(x, rope)
            assert_close(small.norm(x)[0, -1], outputs["hidden"][image, i], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_token_shows_at_later_steps_of_its_order_only(small: Any) -> None:
    ids = ids_of(small)
    for i in (0, 7, TOKENS - 1):
        other = ids.clone()
        for image in range(3):
            other[image, ORDER[image, i]] = (ids[image, ORDER[image, i]] + 1) % small.codebook_size
        hidden = [small.losses(some, LABELS, order=ORDER)["hidden"] for some in (ids, other)]
        change = (hidden[0] - hidden[1]).abs().amax((0, 2))
        assert not change[: i + 1].any()
        assert (change[i + 1 :] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("rule", [None, PowerCosine(4.0, 1.5)])
def test_cached_steps_equal_full_recomputation(small: Any, rule: Guidance | None) -> None:
    noise = image_uniforms(5, range(3), *small.id_shape)
    ids = torch.zeros(3, *small.id_shape, dtype=torch.int64)
    for step in range(TOKENS):
        logits = small(ids, LABELS)[:, step]
        if rule is not None:
            unconditional = small(ids, torch.full_like(LABELS, 3))[:, step]
            logits = rule.combine([logits, unconditional], torch.tensor([step]), TOKENS)
        ids[:, step] = draw(logits / 0.9, noise[:, step])
    drawn = {"guidance": rule or 0.0, "temperature": 0.9, "seed": 5}
    assert torch.equal(generate(small, LABELS, **drawn), ids)
    small.next_places.data.zero_()
    assert not torch.equal(generate(small, LABELS, **drawn), ids)


@pytest.mark.parametrize("sub_codes", [1, 3])
def test_the_loss_is_weighted_by_step(sub_codes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, sub_codes)
    seen: list[Any] = []
    plain = Generator.losses

    def keep(self: Generator, **arguments: Any) -> Any:
        seen.append((arguments, plain(self, **arguments)))
        return seen[-1][1]

    monkeypatch.setattr(Generator, "losses", keep)
    config = configuration(tmp_path, sub_codes)
    config["model"]["init_args"] |= {"losses": None, "corruptions": None}
    module = train(config, 1)
    arguments, outputs = seen[0]
    ids, inputs, places = (arguments[name] for name in ("ids", "inputs", "order"))
    ordering = module.order(20, 4, arguments["step"])
    assert ordering.weights is not None
    assert torch.equal(ids, inputs)
    assert torch.equal(places, ordering.places)
    assert_close(module.record.notes["loss"], (outputs["nats"].detach() * ordering.weights).mean())


def prepare(folder: Path, sub_codes: int) -> None:
    """A tokenizer, and a cache of random tokens that could be its own."""
    block = tiny("tokenizer-stage1", folder)["model"]["init_args"]["tokenizer"]
    if sub_codes > 1:
        kind = {"class_path": "alitok.ideas.lookup_free.LookupFreeQuantizer"}
        block["init_args"]["quantizer"] = {**kind, "init_args": {"codebook_size": 32, "sub_codes": sub_codes}}
        for part in ("encoder", "decoder"):
            block["init_args"][part]["init_args"]["code_dim"] = 5 * sub_codes
    torch.manual_seed(0)
    digest = save_artifact(folder / "stage2" / "artifact", block, build(block), {"kind": "tokenizer"})["digest"]
    ids = np.random.default_rng(0).integers(0, 32, (40, 2, 20, *[sub_codes] * (sub_codes > 1)))
    names = Shapes("train").class_names
    rows = [(image % 10, ids[image]) for image in range(40)]
    out = folder / "tokens"
    write_token_cache(out, rows, codebook_size=32, digest=digest, class_names=names, recipe={})


def configuration(folder: Path, sub_codes: int, *overrides: str, shared: Path | None = None) -> dict[str, Any]:
    """The tiny generator under reAR and ORT, the latter laid over wetok-generator.yaml if there are sub-codes."""
    shared = shared or folder
    files = [DEMO / "generator.yaml", *[IDEAS / "wetok-generator.yaml"] * (sub_codes > 1)]
    words = ["--define.run", str(folder), "--define.cache", str(shared / "tokens"), *GENERATOR, *OPTIONS]
    words += ["--define.tokenizer", str(shared / "stage2" / "artifact")]
    words += ["--define.code_dim", str(4 if sub_codes == 1 else 5 * sub_codes)]
    if sub_codes > 1:
        words += ["--define.sub_codes", str(sub_codes)]
    return compose_run([*files, IDEAS / "rear.yaml", IDEAS / "ort.yaml"], [*words, *overrides])


@pytest.mark.parametrize("sub_codes", [1, 3])
def test_all_of_it_resumes_exactly(sub_codes: int, tmp_path: Path) -> None:
    prepare(tmp_path, sub_codes)
    for name, stops in (("whole", ()), ("parts", (3, 7))):
        for stop in (*stops, 8):
            more = ["--trainer.max_steps", str(stop), "--model.generator.dropout", "0.1"]
            run("fit", configuration(tmp_path / name, sub_codes, *more, shared=tmp_path))
    whole, parts = (load_file(tmp_path / name / ARTIFACT) for name in ("whole", "parts"))
    assert "next_places" in whole
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    states = [read_checkpoint(tmp_path / name / CHECKPOINT)["state_dict"] for name in ("whole", "parts")]
    heads = [name for name in states[0] if name.startswith("heads.")]
    assert {name.split(".")[1] for name in heads} == {"current", "next"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in heads)
    generator = load_generator(tmp_path / "whole" / "generator" / "artifact")
    assert generate(generator, torch.tensor([0, 1])).shape == (2, *generator.id_shape)


def test_a_reference_must_know_the_orders(tmp_path: Path) -> None:
    prepare(tmp_path, 1)
    block = compose_run([DEMO / "generator.yaml"], GENERATOR)["model"]["init_args"]["generator"]
    save_artifact(tmp_path / "teacher", block, build(block), {"kind": "generator"})
    term = "{teacher: {class_path: alitok.ideas.distillation.Distillation}}"
    words = ["--model.losses", term, "--model.corruptions", "null", "--model.reference", str(tmp_path / "teacher")]
    with pytest.raises(BadInput, match="knows one order of the tokens"):
        run("fit", configuration(tmp_path, 1, *words))


@pytest.mark.slow
def test_two_processes_train_the_same(tmp_path: Path) -> None:
    prepare(tmp_path, 1)
    run("fit", configuration(tmp_path / "single", 1, shared=tmp_path))
    two_processes(fit_both, tmp_path)
    single, *others = (load_file(tmp_path / name / ARTIFACT) for name in ("single", "ddp", "fsdp"))
    for other in others:
        assert other.keys() == single.keys()
        assert max(float((tensor - single[name]).abs().max()) for name, tensor in other.items()) < 2e-5
    heads = [read_checkpoint(tmp_path / name / CHECKPOINT)["state_dict"] for name in ("single", "ddp", "fsdp")]
    for name in [name for name in heads[0] if name.startswith("heads.")]:
        for other in heads[1:]:
            assert float((other[name] - heads[0][name]).abs().max()) < 2e-5


def fit_both(rank: int, folder: Path) -> None:
    """The run under DDP and under FSDP2, on two processes."""
    for name, words in STRATEGIES.items():
        run("fit", configuration(folder / name, 1, *words, shared=folder))

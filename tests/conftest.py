"""Shared fixtures: the release's reference numbers, and small models in the release's form."""

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alitok.artifacts.folder import save_artifact
from alitok.artifacts.release import tokenizer_from_release
from alitok.common.build import build
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """Reference numbers of the public release (tests/golden), and the weights and images they were made with."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("golden_fill", FOLDER / "fill.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.fill: Callable[[dict[str, Any]], dict[str, Tensor]] = module.fill
        self.images: Callable[..., Tensor] = module.images

    @cache  # noqa: B019 - one object a test session
    def arrays(self, name: str) -> dict[str, Tensor]:
        with np.load(FOLDER / f"{name}.npz") as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    def json(self, name: str) -> Any:
        return json.loads((FOLDER / f"{name}.json").read_text())

    def randomize(self, module: nn.Module) -> nn.Module:
        """Weights large enough for every input to show in the outputs, where the usual start is near zero."""
        state = module.state_dict()
        module.load_state_dict(self.fill({name: list(tensor.shape) for name, tensor in state.items()}))
        return module.eval()


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


def release_tokenizer_skeleton(stage: int) -> Tokenizer:
    """The release's tokenizer on the meta device."""
    with torch.device("meta"):
        return Tokenizer(
            Encoder(256, 16, 273, 32, 768, 12, 12),
            ClusteredQuantizer(4096, 32, clustering=stage == 1),
            Decoder(256, 16, 17, 32, 1024, 24, 16, stage == 1, 1 if stage == 1 else 32, prefix_head=stage == 1),
        )


@pytest.fixture(scope="session")
def release_skeletons() -> dict[int, Tokenizer]:
    """Stage -> the release's tokenizer on the meta device: names and shapes only."""
    return {stage: release_tokenizer_skeleton(stage) for stage in (1, 2)}


@pytest.fixture(scope="session")
def release_tokenizers(golden: Golden) -> dict[int, Tokenizer]:
    """Stage -> the release's tokenizer at full size (390 M parameters), filled; the two share what is equal."""
    shapes = {1: golden.json("official_stage1_keys"), 2: golden.json("official_tokenizer_keys")}
    filled = golden.fill(shapes[2])
    rest = golden.fill({name: shape for name, shape in shapes[1].items() if shapes[2].get(name) != shape})
    models = {}
    for stage in (1, 2):
        state = {name: (rest if stage == 1 and name in rest else filled)[name] for name in shapes[stage]}
        if stage == 1:
            state["quantize.embed_prob"].zero_()
        models[stage] = release_tokenizer_skeleton(stage)
        models[stage].load_state_dict(tokenizer_from_release(state), assign=True)
        models[stage].eval()
    return models


def tokenizer_block(stage: int = 1, **decoder: Any) -> dict[str, Any]:
    """A small tokenizer of the release's form: 32 x 32 pixels, 4 x 4 patches, 5 prefix tokens, 24 codes."""
    size = {"image_size": 32, "patch_size": 8}
    return {
        "class_path": "alitok.models.tokenizer.Tokenizer",
        "init_args": {
            "encoder": {
                "class_path": "alitok.models.encoder.Encoder",
                "init_args": {**size, "num_latents": 21, "code_dim": 8, "width": 64, "depth": 2, "heads": 1},
            },
            "quantizer": {
                "class_path": "alitok.models.quantizer.ClusteredQuantizer",
                "init_args": {"codebook_size": 24, "code_dim": 8, "clustering": stage == 1},
            },
            "decoder": {
                "class_path": "alitok.models.decoder.Decoder",
                "init_args": {
                    **size,
                    "num_prefix": 5,
                    "code_dim": 8,
                    "width": 128,
                    "depth": 2,
                    "heads": 2,
                    "causal": stage == 1,
                    "buffer_tokens": 1 if stage == 1 else 4,
                    "prefix_head": stage == 1,
                    **decoder,
                },
            },
        },
    }


def generator_block(**arguments: Any) -> dict[str, Any]:
    """A small generator for the tokens of `tokenizer_block`: 3 classes."""
    return {
        "class_path": "alitok.models.generator.Generator",
        "init_args": {
            "codebook_size": 24,
            "num_classes": 3,
            "num_prefix": 5,
            "grid": [4, 4],
            "width": 32,
            "depth": 2,
            "heads": 2,
            **arguments,
        },
    }


@pytest.fixture(scope="session")
def small_tokenizer_block() -> Callable[..., dict[str, Any]]:
    return tokenizer_block


@pytest.fixture(scope="session")
def small_generator_block() -> Callable[..., dict[str, Any]]:
    return generator_block


@pytest.fixture(scope="session")
def artifacts(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer` and, trained on its tokens, `generator`; and with `stranger`, another tokenizer."""
    folder = tmp_path_factory.mktemp("artifacts")
    names = ["circle", "square", "star"]
    tokenizer = golden.randomize(build(tokenizer_block(2)))
    card = save_artifact(folder / "tokenizer", tokenizer_block(2), tokenizer, {"kind": "tokenizer"})
    torch.manual_seed(0)
    save_artifact(folder / "stranger", tokenizer_block(2), build(tokenizer_block(2)), {"kind": "tokenizer"})
    save_artifact(
        folder / "generator",
        generator_block(),
        golden.randomize(build(generator_block())),
        {
            "kind": "generator",
            "class_names": names,
            "tokenizer": card["digest"],
            "guidance": 3.0,
            "power": 2.0,
            "seed": 5,
        },
    )
    return folder


@cache
def shares_a_fixture(file: str) -> bool:
    """Whether a test file has a fixture for all of its tests."""
    return 'scope="module"' in (FOLDER.parents[1] / file).read_text("utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share a module's fixture go to one worker, else each worker makes it; all others go one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_a_fixture(file) else nodeid

    return ByFixture(config, log)


@pytest.fixture(params=["link", "dangling link", "."])
def led_elsewhere(request, tmp_path, monkeypatch):
    """A folder as a user may give it, and the folder to which this leads."""
    target = tmp_path / "disk" / "target"
    (target.parent if request.param == "dangling link" else target).mkdir(parents=True)
    if request.param == ".":
        monkeypatch.chdir(target)
        return Path("."), target
    out = tmp_path / "link"
    out.symlink_to(target)
    return out, target

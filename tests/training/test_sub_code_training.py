"""A generator trains on tokens of several sub-codes, and refuses others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny, train

from alitok.common.errors import BadInput
from alitok.data.token_shards import write_token_cache
from alitok.ideas.shared.sub_codes import SubCodeGenerator

CLASS = "alitok.ideas.shared.sub_codes.SubCodeGenerator"
KIND = ["--model.generator", f"{{class_path: {CLASS}, init_args: {{sub_codes: 3}}}}"]
STILL = ["--model.generator.dropout", "0.0", "--model.warmup_steps", "5", "--define.codebook_size", "16"]


def cache(folder: Path, *shape: int) -> torch.Tensor:
    """A cache of 40 images, four to a class, with the class's ids (10, 20, ...)."""
    ids = np.random.default_rng(0).integers(0, 16, (10, *shape))
    rows = [(image % 10, np.stack([ids[image % 10]] * 2)) for image in range(40)]
    names = [f"class {number}" for number in range(10)]
    write_token_cache(folder / "tokens", rows, codebook_size=16, digest="d" * 64, class_names=names, recipe={})
    return torch.from_numpy(ids)


def test_it_learns_and_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    ids = cache(tmp_path, 20, 3)
    module = train(tiny("generator", tmp_path, *STILL, *KIND), 60)
    generator = module.generator.eval()
    assert isinstance(generator, SubCodeGenerator)
    with torch.no_grad():
        logits = generator(ids, torch.arange(10))
    assert torch.nn.functional.cross_entropy(logits.flatten(0, 2), ids.flatten()) < 0.5 * np.log(16)
    few = [*STILL, *KIND, "--model.class_dropout", "0.0"]
    whole = train(tiny("generator", tmp_path, *few), 4).generator.state_dict()
    parts = train(tiny("generator", tmp_path, *few, "--data.micro_batch", "3"), 4).generator.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=2e-5, rtol=1e-4)


def test_a_cache_with_other_sub_codes_is_refused(tmp_path: Path) -> None:
    for shape, kind, words in (
        ((20,), KIND, r"have 1 sub-code\(s\), the generator's 3"),
        ((20, 3), [], r"have 3 sub-code\(s\), the generator's 1"),
        ((20, 2), KIND, r"have 2 sub-code\(s\), the generator's 3"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        cache(folder, *shape)
        with pytest.raises(BadInput, match=words):
            train(tiny("generator", folder, *STILL, *kind), 1)

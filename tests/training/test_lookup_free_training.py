"""A tokenizer with lookup-free codes in training: the entropy statistics are those of the global batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny, train

CLASS = "alitok.ideas.lookup_free.LookupFreeQuantizer"
QUANTIZER = f"{{class_path: {CLASS}, init_args: {{codebook_size: 8, sub_codes: 2, tau: 1.0}}}}"
KIND = ["--define.code_dim", "6", "--model.tokenizer.quantizer", QUANTIZER, "--model.warmup_steps", "0"]


def trained(folder: Path, *overrides: str, continuous: int = 1) -> Any:
    """The module after a step without quantization and two with it."""
    phases = ["--model.phases.continuous.steps", str(continuous), "--model.phases.main.steps", "4"]
    return train(tiny("tokenizer-stage1", folder, *KIND, *phases, *overrides), 3)


def test_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    whole = trained(tmp_path).tokenizer.state_dict()
    parts = trained(tmp_path, "--data.micro_batch", "3").tokenizer.state_dict()
    even = torch.full((2, 8), 1 / 8)
    assert (whole["quantizer.usage"] - even).abs().max() > 1e-3
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=5e-4 if "quantizer" not in name else 1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["lookup-free", "fsq"])
def test_without_quantization_the_decoder_gets_what_would_be_quantized(tmp_path: Path, kind: str) -> None:
    fsq = "{class_path: alitok.ideas.fsq.FiniteScalarQuantizer, init_args: {levels: [3, 3, 3, 3, 3, 3]}}"
    other = ["--model.tokenizer.quantizer", fsq] if kind == "fsq" else []
    tokenizer = trained(tmp_path, *other).tokenizer.eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    tokenizer.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        outputs = [tokenizer(images, quantize=quantize) for quantize in (False, True)]
    assert torch.equal(seen[0], outputs[0]["latents"])
    torch.testing.assert_close(seen[1], tokenizer.quantizer.lookup(outputs[1]["ids"]))
    if kind == "fsq":
        assert float(seen[0].abs().max()) < 1.01
        torch.testing.assert_close(seen[0].round(), seen[1])
    else:
        torch.testing.assert_close(seen[0].square().mean(-1), torch.ones(2, 20))
        assert torch.equal(seen[0] > 0, seen[1] > 0)

"""The kernels of attention: each agrees with the others, and the user may name one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.common import kernels
from alitok.common.compiler import has_compiler
from alitok.common.devices import float32_products
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models import transformer
from alitok.models.generator import Generator
from alitok.sampling.cache import KeyValueCache, halves
from alitok.sampling.generate import Sampler
from alitok.sampling.weights import Projection

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the kernels need Triton, which is not installed")


def drawn(window: int = 1, schedule: str = "power-cosine", compiled: bool = False) -> torch.Tensor:
    """Ids of three images by a generator whose output is random too."""
    torch.manual_seed(0)
    generator = Generator(16, 5, 2, (2, 3), width=64, depth=1, heads=2).eval()
    torch.nn.init.normal_(generator.output.weight, std=0.3)
    return Sampler(generator, Draw(2.0, schedule=schedule, window=window, compiled=compiled)).sample(torch.arange(3))


@needs_triton
def test_the_triton_kernel_in_its_interpreter() -> None:
    """At every position, head widths 48, 64 and 80, both types, one token and windows; then whole images."""
    code = """
import os, torch
from alitok.sampling.decode_kernel import agrees
for dim, dtype, length in (
    (80, torch.float32, 1), (64, torch.bfloat16, 1),
    (48, torch.float32, 3), (64, torch.bfloat16, 16), (80, torch.bfloat16, 5),
):
    assert agrees(torch.device("cpu"), dim, dtype, length, room=36), (dim, dtype, length)
from tests.sampling.test_kernels import drawn
for words in ({}, {"window": 3}, {"schedule": "softcfg"}):
    os.environ["ALITOK_KERNELS"] = "decode=triton"
    found = drawn(**words)
    os.environ["ALITOK_KERNELS"] = "decode=plain"
    assert torch.equal(found, drawn(**words)), words
print("all agree")
"""
    words = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=words)
    assert done.stdout.strip() == "all agree", done.stderr


@needs_triton
def test_the_triton_kernel_is_compared_with_exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling lets a GPU round float32 factors; the comparison must not."""
    from alitok.sampling import decode_kernel

    found = []

    def cache(*_: Any) -> Any:
        found.append(torch.get_float32_matmul_precision())
        raise InterruptedError

    monkeypatch.setattr(decode_kernel, "KeyValueCache", cache)
    with float32_products(tf32=True), pytest.raises(InterruptedError):
        decode_kernel.agrees(torch.device("cpu"))
    assert found == ["highest"]


@needs_triton
@pytest.mark.skipif(not has_compiler(), reason="compiling needs a C++ compiler")
def test_compiled_blocks_keep_the_triton_kernel() -> None:
    """The rest of a block is compiled around it, and the cache, an input of the compiled code, is not copied."""
    code = """
import os, re, torch
from torch._inductor.utils import run_and_get_code
from tests.sampling.test_kernels import drawn
os.environ["ALITOK_KERNELS"] = "decode=triton"
found, code = run_and_get_code(lambda: drawn(schedule="softcfg", compiled=True))
for one in code:
    assert re.search(r"decode_attention.default\\(.*, arg\\d+_1, arg\\d+_1, (None|arg\\d+_1)\\)", one), one
os.environ["ALITOK_KERNELS"] = "decode=plain"
assert torch.equal(found, drawn(schedule="softcfg"))
print("all agree", len(code))
"""
    words = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=words)
    assert done.stdout.startswith("all agree 1"), done.stderr


@needs_triton
@pytest.mark.parametrize("kernel", ["_one_token", "_window"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_triton_kernel_compiles_for_an_h100(kernel: str, dtype: str) -> None:
    """To machine code, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alitok.sampling import decode_kernel

    function = getattr(decode_kernel, kernel)
    constants = {"D": 80, "D1": 64, "D2": 16, "N": decode_kernel.BLOCK}
    precision = {"fp32": "ieee", "bf16": "tf32"}[dtype]
    constants |= {"WEIGHTED": True} if kernel == "_one_token" else {"L": 4, "LP": 16, "PRECISION": precision}
    types = {"starts": "*i64", "scale": "fp32"} | dict.fromkeys(("heads", "room", "span", "stride"), "i32")
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{dtype}") for name in function.arg_names
    }
    source = ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert compiled.asm["cubin"]


def test_the_parts_of_a_head() -> None:
    assert [halves(dim) for dim in (32, 48, 64, 80, 96, 128)] == [
        (16, 16),
        (32, 16),
        (32, 32),
        (64, 16),
        (64, 32),
        (64, 64),
    ]
    assert halves(72) is None


@pytest.mark.parametrize("words", ["decode=fused", "decode=turned,linear=turned", "decode=plain,linear=blocked"])
@pytest.mark.parametrize("draw", [{}, {"window": 3}, {"schedule": "softcfg"}])
def test_every_kernel_draws_the_same(words: str, draw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of either kind of processor run on any."""
    monkeypatch.setenv("ALITOK_KERNELS", "decode=plain")
    expected = drawn(**draw)
    monkeypatch.setenv("ALITOK_KERNELS", words)
    assert torch.equal(drawn(**draw), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_turned_attention_is_the_plain_one(dtype: torch.dtype, length: int, apart: bool) -> None:
    rows, heads, room, dim = 3, 2, 24, 16
    caches = [
        KeyValueCache(1, rows, heads, room, dim, torch.device("cpu"), dtype, kernel=kernel)
        for kernel in ("plain", "turned")
    ]
    for cache in caches:
        cache.resize(room)
    torch.manual_seed(0)
    for place in range(4, room - length):
        positions = torch.arange(place, place + length)
        positions = positions - torch.arange(rows)[:, None] if apart else positions
        parts = torch.randn(3, rows, heads, length, dim).to(dtype)
        found = []
        for cache in caches:
            cache.start_step(positions)
            found.append(cache.attend(0, *parts).float())
        torch.testing.assert_close(*found, rtol=0, atol=0.03 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", ["blocked", "turned"])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 20), (192, 576), (512, 192)])
def test_a_linear_layer_and_its_rows(
    inputs: int, outputs: int, kernel: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kernel gives the layer's numbers, and a row the same ones next to any others."""
    monkeypatch.setenv("ALITOK_KERNELS", f"linear={kernel}")
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs, outputs, bias)
    made, x = Projection(layer, torch.float32), torch.randn(70, 1, inputs)
    assert made.turned == (kernel == "turned")
    with torch.no_grad():
        torch.testing.assert_close(made(x), layer(x), rtol=1e-5, atol=1e-5)
        apart = 0.0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1e-6
        for rows in (1, 2, 3, 8, 33):
            torch.testing.assert_close(made(x[:rows]), made(x)[:rows], rtol=apart, atol=apart)
        torch.testing.assert_close(made(x[0]), made(x)[0], rtol=apart, atol=apart)
        assert made(x[:0]).shape == (0, 1, outputs)


def test_the_choice_follows_from_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALITOK_KERNELS", raising=False)
    for intel, decode, linear in ((True, "turned", ["turned", "blocked"]), (False, "plain", ["blocked", "blocked"])):
        monkeypatch.setattr(kernels, "intel", lambda intel=intel: intel)
        assert kernels.decode_kernel(torch.device("cpu")) == decode
        assert [kernels.linear_kernel(size, 192) for size in (2**18, 2**22)] == linear
        assert kernels.linear_kernel(2**18, 4096) == "blocked"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_training(causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formula and the fused kernel give the same result and gradient."""
    found = []
    for kernel in ("plain", "fused"):
        monkeypatch.setattr(transformer, "attention_kernel", kernel)
        torch.manual_seed(0)
        parts = [torch.randn(2, 3, 20, 16, dtype=dtype, requires_grad=True) for _ in range(3)]
        out = transformer.attend(*parts, causal=causal)
        out.float().square().sum().backward()
        found.append([out, *(part.grad for part in parts)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0.05 if dtype == torch.bfloat16 else 1e-4, atol=0.05 if dtype == torch.bfloat16 else 1e-5
        )


def test_what_the_variable_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALITOK_KERNELS", "attention=fused, decode=plain")
    assert kernels.chosen("attention") == "fused"
    assert kernels.decode_kernel(torch.device("cpu")) == "plain"
    for value, match in (
        ("decodes=plain", "'decodes'; did you mean 'decode'"),
        ("decode=fast", "wants 'fast' for decode; there are plain, turned, fused, triton"),
        ("decode", "wants '' for decode"),
        ("decode=triton", "needs Triton and an NVIDIA GPU"),
    ):
        monkeypatch.setenv("ALITOK_KERNELS", value)
        with pytest.raises(BadInput, match=match):
            kernels.decode_kernel(torch.device("cpu"))

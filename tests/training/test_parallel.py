"""What strategies do to a model, seen without their devices."""

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from alitok.common.build import build
from alitok.training import parallel
from alitok.training.parallel import children_end_with_this, parallelize, whole


@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_the_whole_copy_lies_on_one_device(
    kind: str, small_generator_block: Any, small_tokenizer_block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator's rotary table is made on the CPU on every device."""
    block = small_generator_block() if kind == "generator" else small_tokenizer_block()
    module = build(block)
    module.block = block
    state = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    monkeypatch.setattr(parallel, "is_sharded", lambda value: True)
    monkeypatch.setattr(parallel, "get_model_state_dict", lambda module, options: state)
    copy = whole(module)
    devices = {name: tensor.device.type for name, tensor in (*copy.named_parameters(), *copy.named_buffers())}
    assert len(devices) == len([*module.parameters(), *module.buffers()])
    assert set(devices.values()) == {"meta"}


def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, None])
def test_children_end_if_this_process_fails(error: type[BaseException] | None) -> None:
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher.procs = [child()]
    module = SimpleNamespace(_trainer=SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    try:
        if error is None:
            with children_end_with_this(module):
                pass
            assert launcher.procs[0].poll() is None
        else:
            with pytest.raises(error), children_end_with_this(module):
                raise error
            assert launcher.procs[0].wait(10) == -signal.SIGTERM
    finally:
        launcher.procs[0].kill()
        launcher.procs[0].wait()


@pytest.mark.parametrize(
    "module", [torch.nn.Module(), SimpleNamespace(_trainer=SimpleNamespace(strategy=SimpleNamespace(launcher=None)))]
)
def test_without_children_the_error_is_all(module: Any) -> None:
    with pytest.raises(ValueError, match="mine"), children_end_with_this(module):
        raise ValueError("mine")


class Plain(torch.nn.Module):
    """A model with a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])


def test_blocks_that_do_not_compile_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def refuse(forward: Any) -> Any:
        def call(*_: Any) -> Any:
            calls.append(forward)
            raise RuntimeError("no\nbackend")

        return call

    monkeypatch.setattr(parallel, "_compiled_forward", refuse)
    monkeypatch.setattr(parallel, "_does_not_compile", set())
    model, x = Plain(), torch.randn(2, 4)
    expected = model.blocks[0](x)
    parallel.compile_blocks(model, or_plain=True)
    assert torch.equal(model.blocks[0](x), expected)
    assert torch.equal(model.blocks[0](x), expected)
    assert len(calls) == 1
    assert capsys.readouterr().err == "alitok: Linear does not compile and runs as it is: no backend\n"
    parallel.compile_blocks(model)
    with pytest.raises(RuntimeError, match="backend"):
        model.blocks[0](x)


@pytest.mark.parametrize(("device", "compiles"), [("cuda", True), ("cpu", False)])
def test_auto_compiles_for_the_device_of_the_strategy(
    device: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    monkeypatch.setattr(parallel, "compile_blocks", lambda model, or_plain: found.append(or_plain))
    monkeypatch.setattr(parallel, "has_compiler", lambda: True)
    monkeypatch.setattr(parallel, "find_spec", lambda name: name == "triton")
    trainer = SimpleNamespace(strategy=SingleDeviceStrategy(device), precision="bf16-mixed")
    options = {"compile_blocks": "auto", "activation_checkpointing": False}
    parallelize(SimpleNamespace(parallel=False, trainer=trainer, **options), Plain())
    assert found == compiles * [True]


def test_an_out_of_memory_error_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(forward: Any) -> Any:
        def call(*_: Any) -> Any:
            raise torch.OutOfMemoryError("full")

        return call

    monkeypatch.setattr(parallel, "_compiled_forward", full)
    model = Plain()
    parallel.compile_blocks(model, or_plain=True)
    with pytest.raises(torch.OutOfMemoryError):
        model.blocks[0](torch.randn(2, 4))

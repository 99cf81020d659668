"""Nothing in a training step waits for the device: shown without one, by the operations that would have to wait."""

import copy
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alitok.config import compose_run
from alitok.studies import small
from alitok.training.base import TrainingModule
from alitok.training.launch import run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
aten = torch.ops.aten
# They give the host a number, or a tensor whose shape depends on numbers.
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.equal, aten.is_nonzero, aten.repeat_interleave,
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts them. `repeat_interleave` waits only if the repeats are a tensor, `index` only if a mask is the index."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masked = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in args[1]
        )
        # index_put with one number and a mask is masked_fill, which waits for nothing
        if packet in WAITING or (masked and not (packet is not aten.index and args[2].numel() == 1)):
            frames = [frame for frame in traceback.extract_stack() if "alitok" in frame.filename]
            self.seen[
                f"{packet} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else str(packet)
            ] += 1
        return func(*args, **(kwargs or {}))


def waits(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Those of all training steps of a small run."""
    seen: Counter[str] = Counter()
    step = TrainingModule.training_step

    def counted(self: Any, batch: Any, index: int) -> Any:
        with Waits() as mode:
            result = step(self, batch, index)
        seen.update(mode.seen)
        return result

    monkeypatch.setattr(TrainingModule, "training_step", counted)
    torch.autograd.set_detect_anomaly(False)  # which a run of another test may have left on, and which waits
    run("fit", copy.deepcopy(config))
    return seen


IDEAS = sorted((EXPERIMENTS / "ideas").glob("*.yaml"))
STACKS = [
    pytest.param([EXPERIMENTS / "demo" / f"{part}.yaml"], id=f"demo-{part}")
    for part in ("tokenizer-stage1", "tokenizer-stage2", "generator")
]
STACKS.append(
    pytest.param([EXPERIMENTS / "imagenet256" / "tokenizer-stage1.yaml"], id="imagenet256", marks=pytest.mark.slow)
)
STACKS += [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in IDEAS]


@pytest.mark.parametrize("files", STACKS)
def test_a_step_waits_for_nothing(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(files, Path):
        files = min(small.stacks(files), key=lambda stack: "demo" not in str(stack[0]))
    config = small.small(compose_run(files, ["--define.run", str(tmp_path)]))
    config["trainer"]["callbacks"].pop("samples", None)
    small.prepare(config)
    assert waits(config, monkeypatch) == Counter()


def test_the_mode_sees_what_waits() -> None:
    x = torch.arange(4.0)
    with Waits() as mode:
        x.sum().item()
        x[x > 1]
        torch.bincount(x.long())
        x.repeat_interleave(2)
        x.masked_fill(x > 1, 0.0)
        x[x > 1] = 0.0
    seen = Counter(name.split(" at ")[0] for name in mode.seen.elements())
    assert seen == {"aten._local_scalar_dense": 1, "aten.index": 1, "aten.bincount": 1}

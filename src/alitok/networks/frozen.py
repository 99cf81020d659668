"""Frozen networks for losses, with published weights from a file or, for 'random:SEED', random ones."""

import logging
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.files import find_weights, hub_checkpoints
from alitok.common.random import stream

log = logging.getLogger("alitok")
RANDOM = "random:"
_loaded: WeakValueDictionary[tuple[str, str, str], nn.Module] = WeakValueDictionary()
_built: dict[tuple[str, str | None], nn.Module] | None = None


@dataclass(frozen=True)
class Network:
    """A torchvision network: how it is built, the file of its weights, and the prefix of that file's unused keys."""

    name: str
    file: str
    build: Callable[[], nn.Module]
    unused: str | None = None

    @property
    def origin(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}"


def _vgg16_features() -> nn.Module:
    from torchvision.models import vgg16

    return nn.ModuleDict({"features": vgg16(weights=None).features[:30]})  # up to relu5_3


def _convnext_small() -> nn.Module:
    from torchvision.models import convnext_small

    return convnext_small(weights=None)


VGG16 = Network("VGG16", "vgg16-397923af.pth", _vgg16_features, unused="classifier.")
CONVNEXT_SMALL = Network("ConvNeXt-S", "convnext_small-0c510722.pth", _convnext_small)


def locate(network: Network, given: str | None) -> str:
    """The path of the weight file, or 'random:SEED' as given.

    Raises:
        BadInput: the file is missing, or SEED is not a whole number.
    """
    if given is not None and given.startswith(RANDOM):
        if not given.removeprefix(RANDOM).isdecimal():
            raise BadInput(
                f"Weights {given!r} of {network.name} should be 'random:' and a whole number, e.g. 'random:0'."
            )
        return given
    elsewhere = "set TORCH_HOME to the folder above hub/checkpoints"
    return str(find_weights(network.file, given, hub_checkpoints(), network.origin, elsewhere))


@contextmanager
def without_weights() -> Iterator[dict[tuple[str, str | None], nn.Module]]:
    """Inside, `load` reads no file, and its networks have meaningless weights. Yields (name, given) -> network.

    For counting a network's cost, on the meta device or on fake tensors.
    """
    global _built
    before, _built = _built, {}
    try:
        yield _built
    finally:
        _built = before


def counting() -> bool:
    """Whether this runs inside `without_weights`."""
    return _built is not None


def load(network: Network, given: str | None, device: torch.device | str) -> nn.Module:
    """The network on `device`, frozen, in eval mode. Calls for the same weights and device share one object.

    Args:
        given: None (torch.hub's folder of checkpoints), a file, a folder that contains it, or 'random:SEED'.

    Raises:
        BadInput: the file is missing, damaged or has the weights of a different network.
    """
    if _built is not None:
        if (network.name, given) not in _built:
            with torch.device(device):
                _built[network.name, given] = network.build().requires_grad_(False).eval()
        return _built[network.name, given]
    where = locate(network, given)
    key = (network.name, where, str(torch.device(device)))
    module = _loaded.get(key)
    if module is None:
        module = _unfilled(network)
        if where.startswith(RANDOM):
            log.warning("%s has random weights (%s), which stand in for the published ones.", network.name, where)
            state = _random_state(module, int(where.removeprefix(RANDOM)))
        else:
            state = read_state(where, module.state_dict(), network.name, network.unused)
        module.load_state_dict(state, assign=True)
        module = module.requires_grad_(False).eval().to(device)
        _loaded[key] = module
    return module


def read_state(
    path: str | Path, expected: Mapping[str, Tensor], name: str, unused: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a weight file, floats as float32, without the keys that begin with `unused`.

    Raises:
        BadInput: the file is damaged, or its names and shapes differ from those in `expected`.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise BadInput(
            f"{path} is not a readable weight file of {name} ({type(error).__name__}); download it again."
        ) from error
    state = content if isinstance(content, Mapping) else {}
    state = {key: value for key, value in state.items() if unused is None or not str(key).startswith(unused)}
    for key in sorted(expected.keys() | state.keys(), key=str):
        have, want = (_shape(tensors.get(key)) for tensors in (state, expected))
        if have != want:
            raise BadInput(f"{path} does not hold the weights of {name}: {key} is {have}, should be {want}.")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(getattr(tensor, "shape", ())))


def _unfilled(network: Network) -> nn.Module:
    """The network without weights, on the meta device; if it has buffers, built in full, which fills them."""
    with torch.device("meta"):
        module = network.build()
    if next(module.buffers(), None) is None:
        return module
    with torch.random.fork_rng(devices=[]):
        return network.build()


def _random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """He-scaled normal weights, unit scales and zero shifts. Each tensor depends only on the seed and its name.

    Buffers stay as they are: a new running variance is 1.
    """
    state = module.state_dict()
    for key, value in module.named_parameters():
        if value.ndim == 1:
            state[key] = torch.full(value.shape, float(key.endswith(("weight", "gamma"))))
        else:
            noise = torch.randn(value.shape, generator=stream("frozen network", seed, key))
            state[key] = noise * math.sqrt(2 / math.prod(value.shape[1:]))
    return state

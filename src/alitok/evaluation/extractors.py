"""Extractors turn images into features: their interface, and TensorFlow's Inception of 2015 as TorchScript."""

import platform
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.files import find_weights, sha256
from alitok.common.random import stream

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_ORIGIN = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
ANOTHER_PLACE = "name the file with --extractor (EXTRACTOR= for make)"
POOLED_WIDTH, NUM_CLASSES = 2048, 1008
# Convolutions of the 2015 graph, (out, in, height, width), by module name below `layers`.
INCEPTION_CONVOLUTIONS = {
    "conv": (32, 3, 3, 3),
    "conv_1": (32, 32, 3, 3),
    "conv_2": (64, 32, 3, 3),
    "conv_3": (80, 64, 1, 1),
    "conv_4": (192, 80, 3, 3),
    "mixed_6.conv": (192, 768, 1, 1),
}
INPUT_SIZE = 299
SPATIAL_CHANNELS = 7  # of mixed_6/conv; with 7, ADM gets about as many numbers as pooled features
INCEPTION_MODULES = {"pool0", "pool1", "mixed", *(f"mixed_{i}" for i in range(1, 7))}


class Features(NamedTuple):
    """`pooled` (B, F) float32; `probabilities` (B, C) float32 with rows that sum to 1, (B, 0) without classes.

    `spatial` (B, S) float32 from an intermediate layer, for sFID; None if the network has none.
    """

    pooled: Tensor
    probabilities: Tensor
    spatial: Tensor | None = None


class Extractor(Protocol):
    """A frozen network for FID and Inception Score; `stand_in`: it is not the 2015 Inception.

    It computes in full float32 even if the command allows TF32, whose ten bits change an FID's third digit.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def num_features(self) -> int: ...

    @property
    def num_spatial(self) -> int:
        """S; 0 if there are no spatial features."""
        ...

    @property
    def stand_in(self) -> bool: ...

    @property
    def resize(self) -> str:
        """How images are resized for the network, in words, for the record."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W)."""
        ...


def check_images(images: Tensor) -> None:
    """Raise BadInput for anything except a batch of uint8 images (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise BadInput(
            f"Extractors take uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}: use to_uint8."
        )


def open_extractor(spec: str, device: torch.device | str) -> Extractor:
    """The extractor that a configuration or command names.

    Args:
        spec: "inception" (the file in clean-fid's folder), a TorchScript file, or the folder of a classifier.

    Raises:
        BadInput: the file is missing, or holds another network.
    """
    from alitok.evaluation.classifier import Classifier, ClassifierExtractor  # imports this file

    if Path(spec).is_dir():
        return ClassifierExtractor(Classifier.load(spec), Path(spec).name, device)
    return InceptionExtractor(None if spec == "inception" else spec, device)


def clean_fid_folder() -> Path:
    """The folder in which clean-fid keeps the Inception file."""
    return Path("." if platform.system() == "Windows" else "/tmp")


class InceptionExtractor:
    """The 2015 Inception, called as in the ADM evaluator: softmax of the logits without their bias.

    The network resizes to 299 x 299 and normalizes. `stand_in` is false only if its module names and weight shapes are
    those of the genuine network. Its parts (resize, `layers`, the output's weights) are run one by one, which gives
    everything, with spatial features, in one pass. If a trial shows that the parts do not agree with the whole, the
    whole is called and there are no spatial features.

    Args:
        path: the file or its folder; None = where clean-fid keeps it.
        device: where it runs.

    Raises:
        BadInput: the file is missing, is no TorchScript, or has another interface.
    """

    name = "inception-2015-12-05"
    resize = "bilinear to 299 x 299 inside the network"

    def __init__(self, path: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        file = find_weights(INCEPTION_FILE, path, clean_fid_folder(), INCEPTION_ORIGIN, ANOTHER_PLACE)
        self.digest = sha256(file)
        self.device = torch.device(device)
        try:
            # The one exception to 'nothing is unpickled': the genuine network is published as TorchScript only. Its
            # loader builds only TorchScript's types and runs no Python code from the file.
            with warnings.catch_warnings():
                # torch.jit is deprecated in favor of torch.export, in which this network is not published.
                warnings.simplefilter("ignore", FutureWarning)
                self._network = torch.jit.load(str(file), map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            raise BadInput(f"{file} is not a TorchScript file: download it from {INCEPTION_ORIGIN}.") from error
        self._output: Tensor | None = None
        trial = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=stream("extractor trial"))
        try:
            probe = self(trial)
        except (RuntimeError, TypeError) as error:
            raise BadInput(
                f"{file} does not answer Inception's calls (return_features, no_output_bias): "
                f"download it from {INCEPTION_ORIGIN}."
            ) from error
        if any(not isinstance(part, Tensor) or part.ndim != 2 or len(part) != 2 for part in probe[:2]):
            raise BadInput(f"{file} returns no (B, F) features and (B, C) probabilities: use the genuine file.")
        if not torch.allclose(probe.probabilities.sum(dim=1), torch.ones(2, device=self.device), atol=1e-3):
            raise BadInput(f"{file} returns rows that are no class probabilities: use the genuine file.")
        self.num_features = probe.pooled.shape[1]
        self.stand_in = not (
            has_inception_layers(self._network)
            and self.num_features == POOLED_WIDTH
            and probe.probabilities.shape[1] == NUM_CLASSES
        )
        self._output = self._find_output(trial, probe)
        spatial = self(trial).spatial
        self.num_spatial = 0 if spatial is None else spatial.shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W), on the extractor's device.

        Raises:
            BadInput: images of another type or shape.
        """
        check_images(images)
        pixels = images.to(self.device).float()
        with torch.autocast(self.device.type, enabled=False), float32_products(tf32=False):
            if self._output is not None:
                pooled, spatial = self._in_parts(pixels)
                return Features(pooled, (pooled @ self._output.T).softmax(dim=1), spatial)
            pooled = self._network(pixels, return_features=True)
            probabilities = self._network(pixels, no_output_bias=True)
        return Features(pooled, probabilities)

    def _in_parts(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pooled (B, F) and spatial features (B, S), the latter from mixed_6/conv with channels last, as in ADM.

        Raises:
            AttributeError, RuntimeError: the network has other parts.
        """
        hidden, spatial = (resize_as_tensorflow(pixels, INPUT_SIZE) - 128) / 128, None
        for name, layer in self._network.layers.named_children():
            if name == "mixed_6":
                spatial = rearrange(layer.conv(hidden)[:, :SPATIAL_CHANNELS], "b c h w -> b (h w c)")
            hidden = layer(hidden)
        return hidden.flatten(1), spatial

    @torch.no_grad()
    @float32_products(tf32=False)
    def _find_output(self, trial: Tensor, whole: Features) -> Tensor | None:
        """The weights (C, F) of the output if the network's parts agree with the whole, else None."""
        try:
            pooled, spatial = self._in_parts(trial.to(self.device).float())
        except (AttributeError, RuntimeError):
            return None
        if spatial is None or not _close(pooled, whole.pooled):
            return None
        shape = (whole.probabilities.shape[1], self.num_features)
        for weight in self._network.state_dict().values():
            if weight.shape == shape and _close((pooled @ weight.T).softmax(dim=1), whole.probabilities):
                return weight
        return None


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())


def resize_as_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resize as in TensorFlow 1: output pixel i lies at input pixel i * (side / size), no antialiasing.

    Args:
        images: (B, 3, H, W) float.
    """
    # grid_sample counts from pixel centers; this undoes its shift of half a pixel
    height, width = images.shape[-2:]
    theta = images.new_tensor([[1, 0, 1 / width - 1 / size], [0, 1, 1 / height - 1 / size]])
    grid = F.affine_grid(theta.expand(len(images), 2, 3), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def has_inception_layers(network: torch.nn.Module) -> bool:
    """Whether `network.layers` has the 2015 Inception's module names and convolution shapes."""
    layers = dict(network.named_children()).get("layers")
    if layers is None:
        return False
    modules = dict(layers.named_modules())
    if not modules.keys() >= INCEPTION_MODULES | INCEPTION_CONVOLUTIONS.keys():
        return False
    return all(
        [tuple(t.shape) for t in modules[name].state_dict().values() if t.ndim == 4] == [shape]
        for name, shape in INCEPTION_CONVOLUTIONS.items()
    )

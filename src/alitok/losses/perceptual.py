"""Distances between images in the features of frozen networks."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.files import find_weights
from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs, image_pair
from alitok.networks.classifier import CLASSIFIER, Classifier
from alitok.networks.frozen import CONVNEXT_SMALL, RANDOM, VGG16, counting, load, locate, read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Standardised:
    """Normalizes images for a network by MEAN and STD. A subclass sets its own, and calls this `setup`."""

    MEAN, STD = IMAGENET_MEAN, IMAGENET_STD

    def setup(self, device: torch.device | str) -> None:
        # not in each step, where the copy to a GPU would wait for all queued work
        self._mean, self._std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (self.MEAN, self.STD))

    def standardise(self, images: Tensor) -> Tensor:
        """(images - MEAN) / STD by channel."""
        return (images - self._mean) / self._std


class Perceptual(Standardised, LossTerm):
    """Base of the perceptual terms: the mean of `distance` over the batch."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return self.distance(*image_pair(batch, outputs)).mean()

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        """Two tensors (B, 3, H, W), RGB in [0, 1] -> (B,) float32. Gradients flow only to `images`."""
        raise NotImplementedError(f"{type(self).__name__} must define distance(images, targets).")


class ConvNeXtLogits(Perceptual):
    """Mean squared difference of the 1000 logits of torchvision's ConvNeXt-S (IMAGENET1K_V1).

    Images are resized to 224 x 224 (bilinear, antialiased) and normalized as for ImageNet.

    Args:
        weights: None (torch.hub's folder of checkpoints), a file, a folder that contains it, or 'random:SEED' for a
            random network if the published one is not available.
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights
        self._network: nn.Module | None = None

    def check(self) -> None:
        locate(CONVNEXT_SMALL, self.weights)

    def setup(self, device: torch.device | str) -> None:
        super().setup(device)
        self._network = load(CONVNEXT_SMALL, self.weights, device)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B, 1000)."""
        network = _ready(self._network, self)
        images = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        return network(self.standardise(images))

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                expected = self.logits(targets.float())
            return (self.logits(images.float()) - expected).square().mean(dim=1)


class LPIPS(Perceptual):
    """LPIPS on VGG16 (Zhang et al. 2018, arXiv 1801.03924, version 0.1), at full resolution, without dropout.

    Unit-normalized features after relu1_2, 2_2, 3_3, 4_3 and 5_3; squared differences, weighted by channel, averaged
    over space and summed over the five layers.

    Args:
        vgg_weights: as `weights` of `ConvNeXtLogits`, for torchvision's VGG16.
        linear_weights: file with the five layers' channel weights; None takes the one that torchmetrics ships.
    """

    TAPS = (0, 4, 9, 16, 23, 30)  # torchvision's VGG16 cut after the last ReLU of each resolution
    MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, vgg_weights: str | None = None, linear_weights: str | None = None) -> None:
        self.vgg_weights = vgg_weights
        self.linear_weights = linear_weights
        self._network: nn.Module | None = None
        self._linear: list[Tensor] = []

    def check(self) -> None:
        locate(VGG16, self.vgg_weights)
        self._linear_path()

    def setup(self, device: torch.device | str) -> None:
        super().setup(device)
        self._network = load(VGG16, self.vgg_weights, device)
        expected = {
            f"lin{layer}.model.1.weight": torch.empty(1, channels, 1, 1, device="meta")
            for layer, channels in enumerate((64, 128, 256, 512, 512))
        }
        state = read_state(self._linear_path(), expected, "LPIPS's linear layers")
        self._linear = [state[key].to(device) for key in expected]

    def _linear_path(self) -> Path:
        spec = find_spec("torchmetrics")
        if spec is None or spec.origin is None:
            raise BadInput("LPIPS takes its linear layers from torchmetrics, which is not installed; run `make setup`.")
        folder = Path(spec.origin).parent / "functional" / "image" / "lpips_models"
        return find_weights("vgg.pth", self.linear_weights, folder, "the torchmetrics package")

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), RGB in [0, 1] -> five maps (B, channels, h, w), of unit length at each place."""
        layers = _ready(self._network, self).get_submodule("features")
        assert isinstance(layers, nn.Sequential)
        maps, x = [], self.standardise(2 * images - 1)
        for start, stop in pairwise(self.TAPS):
            x = layers[start:stop](x)
            # vector_norm's gradient is 0, not NaN, if all channels are 0
            maps.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return maps

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                expected = self.features(targets.float())
            total = images.new_zeros(len(images), dtype=torch.float32)
            for ours, theirs, weight in zip(self.features(images.float()), expected, self._linear, strict=True):
                total = total + F.conv2d((ours - theirs).square(), weight).mean(dim=(1, 2, 3))
            return total


class ClassifierFeatures(Perceptual):
    """Distance of feature maps in a classifier of this project (`alitok train-classifier`), without a download.

    LPIPS without its channel weights: maps after each of the five blocks, of unit length at each place; the squared
    differences are summed over channels, averaged over space and summed over the blocks.

    Args:
        weights: folder of the classifier, or 'random:SEED' for a random network.
        weight: weight of the term in phases that set none.
    """

    def __init__(self, weights: str, weight: float = 1.0) -> None:
        self.weights, self.weight = weights, weight
        self._network: nn.Module | None = None

    def check(self) -> None:
        if self.weights.startswith(RANDOM):
            locate(CLASSIFIER, self.weights)
        else:
            Classifier.load(self.weights)

    def setup(self, device: torch.device | str) -> None:
        if self.weights.startswith(RANDOM) or counting():
            self._network = load(CLASSIFIER, self.weights, device)
        else:
            self._network = Classifier.load(self.weights).requires_grad_(False).to(device)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), RGB in [0, 1] -> five maps (B, channels, h, w) of unit length at each place."""
        network = _ready(self._network, self)
        assert isinstance(network, Classifier)
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10) for x in network.maps(images)]

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                expected = self.features(targets.float())
            pairs = zip(self.features(images.float()), expected, strict=True)
            return torch.stack([(ours - theirs).square().sum(1).mean((1, 2)) for ours, theirs in pairs]).sum(0)


def _ready(network: nn.Module | None, term: LossTerm) -> nn.Module:
    if network is None:
        raise RuntimeError(f"{type(term).__name__} has no network yet: call setup(device) first.")
    return network

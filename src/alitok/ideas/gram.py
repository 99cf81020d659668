"""The Gram loss: which features occur together in an image, regardless of place (AToken, arXiv 2509.14476)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.losses.perceptual import ClassifierFeatures, Perceptual
from alitok.models.tokenizer import Tokenizer
from alitok.networks.classifier import Classifier
from alitok.networks.frozen import VGG16, load, locate


class GramLoss(Perceptual):
    """Mean over (C, C) of the squared differences of Gram matrices, weighted and summed over maps."""

    def matrices(self, images: Tensor) -> Iterator[tuple[float, Tensor]]:
        """(B, 3, H, W), RGB in [0, 1] -> (factor, Gram matrices (B, C, C)) of each map."""
        raise NotImplementedError

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                expected = [matrix for _, matrix in self.matrices(targets.float())]
            total = images.new_zeros(len(images), dtype=torch.float32)
            for (factor, ours), theirs in zip(self.matrices(images.float()), expected, strict=True):
                total = total + factor * (ours - theirs).square().mean(dim=(1, 2))
            return total


class Gram(GramLoss):
    """Squared differences of the Gram matrices of VGG16's feature maps.

    A map f (C, h, w) has the matrix G = f f^T / (C h w), (C, C), which does not depend on the order of places. AToken
    gives no layers and no scale, so both follow BAR's code (arXiv 2602.09024): the mean over (C, C) of (G - G')^2,
    twice for each map after a ReLU and once for each pooled map, summed. (BAR lists each convolution and its ReLU,
    which works in place, so both entries are the same map.)

    Args:
        weights: None (torch.hub's folder of checkpoints), a file, a folder that holds it, or 'random:SEED' for a
            random network if the published one is not available.
        at_most: side in pixels to which larger images are shrunk. Smaller images are not resized.
        weight: weight of the term in phases that set none.

    Raises:
        BadInput: `at_most` or the model's images are below 32, so that the last map would be empty.
    """

    _network: nn.Module

    def __init__(self, weights: str | None = None, at_most: int = 224, weight: float = 10.0) -> None:
        if at_most < 32:
            raise BadInput(f"Gram: VGG16 halves images five times, so at_most must be 32 or more, not {at_most}.")
        self.weights = weights
        self.at_most = at_most
        self.weight = weight

    def attach(self, model: nn.Module) -> None:
        size = model.image_size if isinstance(model, Tokenizer) else 32
        if size < 32:
            raise BadInput(f"Gram: VGG16 halves images five times, so they must have 32 pixels or more, not {size}.")

    def check(self) -> None:
        locate(VGG16, self.weights)

    def setup(self, device: torch.device | str) -> None:
        super().setup(device)
        self._network = load(VGG16, self.weights, device)

    def matrices(self, images: Tensor) -> Iterator[tuple[float, Tensor]]:
        if max(images.shape[-2:]) > self.at_most:
            images = F.interpolate(images, size=(self.at_most, self.at_most), mode="bilinear", align_corners=False)
        x = self.standardise(images)
        layers = self._network.get_submodule("features")
        assert isinstance(layers, nn.Sequential)
        for layer in [*layers, nn.MaxPool2d(2)]:  # the loader omits the last pool
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                continue
            yield (2.0 if isinstance(layer, nn.ReLU) else 1.0), gram(x)


class ClassifierGram(GramLoss, ClassifierFeatures):
    """The same loss on the five maps of a project classifier, each once: for small pictures, without a download."""

    def matrices(self, images: Tensor) -> Iterator[tuple[float, Tensor]]:
        assert isinstance(self._network, Classifier)
        for x in self._network.maps(images):
            yield 1.0, gram(x)


def gram(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, C): products of channels, summed over places, / (C h w)."""
    flat = maps.flatten(2)
    return flat @ flat.mT / flat[0].numel()

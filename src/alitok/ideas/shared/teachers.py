"""Frozen networks whose feature maps a tokenizer learns to predict."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.ideas.shared import dino
from alitok.losses.perceptual import Standardised
from alitok.losses.terms import LossTerm
from alitok.networks.classifier import CLASSIFIER, Classifier
from alitok.networks.frozen import VGG16, Network, counting, load, locate


class Teacher(Standardised):
    """A frozen network whose feature map a tokenizer learns to predict. Images are standardized as in ImageNet.

    Attributes:
        channels: channels of the map.
        stride: side in pixels of each place of the map.
    """

    channels: int
    stride: int

    def check(self) -> None:
        """Raise BadInput if the file that `setup` will read is missing; reads none."""
        raise NotImplementedError

    def network(self, device: torch.device | str) -> nn.Module:
        """The network, frozen, on the device: (B, 3, H, W) -> (B, channels, H / stride, W / stride)."""
        raise NotImplementedError

    def setup(self, device: torch.device | str) -> None:
        """Load the network."""
        super().setup(device)
        self._network = self.network(device)

    @torch.no_grad()
    def features(self, images: Tensor, rows: int) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B, rows * rows, channels), after a bicubic resize that gives these rows."""
        size = (self.stride * rows, self.stride * rows)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        maps: Tensor = self._network(self.standardise(images))
        return maps.flatten(2).mT


class DINOv2B(Network):
    @property
    def origin(self) -> str:
        return f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/{self.file}"


DINO = DINOv2B("DINOv2-B", "dinov2_vitb14_pretrain.pth", dino.DINOv2)


class Published(Teacher):
    """A teacher whose weights are a published file.

    Args:
        weights: None (torch.hub's folder of checkpoints), a file, a folder that holds it, or 'random:SEED'.
    """

    source: Network

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def check(self) -> None:
        locate(self.source, self.weights)

    def network(self, device: torch.device | str) -> nn.Module:
        return load(self.source, self.weights, device)


class DINOv2(Published):
    """The paper's teacher: patch features of DINOv2-B/14 after its last norm."""

    source, channels, stride = DINO, 768, 14


class VGG16Map(Published):
    """VGG16's features after relu4_3; with random weights, features of an untrained network."""

    source, channels, stride = VGG16, 512, 8

    def network(self, device: torch.device | str) -> nn.Module:
        layers = super().network(device).get_submodule("features")
        assert isinstance(layers, nn.Sequential)
        return layers[:23]


class ClassifierMap(Teacher):
    """The last map of a classifier from `alitok train-classifier`. It was trained on labels, so it leaks the class.

    Args:
        folder: folder of the classifier.
        width: width of the classifier.
    """

    stride = 8
    MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, folder: str, width: int = 24) -> None:
        self.folder = folder
        self.channels = 4 * width

    def check(self) -> None:
        if not (Path(self.folder) / "model.safetensors").is_file():
            raise BadInput(f"{self.folder} holds no classifier: make one with `alitok train-classifier`.")

    def network(self, device: torch.device | str) -> nn.Module:
        if counting():
            own = Network(CLASSIFIER.name, CLASSIFIER.file, lambda: Classifier(1, self.channels // 4))
            counted: nn.Module = load(own, self.folder, device).get_submodule("body")
            return counted
        classifier = Classifier.load(self.folder)
        if classifier.num_features != self.channels:
            raise BadInput(
                f"ClassifierMap: the classifier of {self.folder} has width {classifier.width},"
                f" not {self.channels // 4}; give its width."
            )
        return classifier.body.requires_grad_(False).to(device)


class TeacherTerm(LossTerm):
    """A loss term that compares with a teacher's features.

    Raises:
        BadInput: `teacher` is no Teacher.
    """

    def __init__(self, teacher: Teacher) -> None:
        if not isinstance(teacher, Teacher):
            raise BadInput(
                f"{type(self).__name__}: teacher must be a {Teacher.__module__}.Teacher, not a"
                f" {type(teacher).__name__}."
            )
        self.teacher = teacher

    def check(self) -> None:
        self.teacher.check()

    def setup(self, device: torch.device | str) -> None:
        self.teacher.setup(device)

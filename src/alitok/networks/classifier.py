"""The small classifier whose features can replace Inception's and those of the published perceptual networks."""

import hashlib
import json
from pathlib import Path

from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.files import atomic_folder
from alitok.common.tensors import save_tensors
from alitok.networks.frozen import Network


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Five 3x3 convolutions (BatchNorm, ReLU; 1/8 of the size), mean over positions, one linear layer.

    Images are (B, 3, H, W) in [0, 1], H and W at least 16; features (B, 4 * width), logits (B, C).
    """

    def __init__(self, num_classes: int, width: int = 24) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        self.body = nn.Sequential(
            *_block(3, width, 2),
            *_block(width, 2 * width, 2),
            *_block(2 * width, 2 * width, 1),
            *_block(2 * width, 4 * width, 2),
            *_block(4 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    @property
    def num_features(self) -> int:
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        """Pooled penultimate features (B, 4 * width)."""
        return self.body(images * 2 - 1).mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, channels, h, w) after each of the five blocks."""
        maps, x = [], images * 2 - 1
        for start in range(0, len(self.body), 3):
            x = self.body[start : start + 3](x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.head(self.features(images))

    def digest(self) -> str:
        """SHA-256 over names, shapes and values of all weights."""
        result = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return result.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes a folder with `config.json` and `model.safetensors`, whole or not at all."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_folder(folder) as temporary:
            save_tensors(weights, temporary / "model.safetensors")
            config = {"num_classes": self.num_classes, "width": self.width}
            (temporary / "config.json").write_text(json.dumps(config) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """Reads what `save` wrote, in eval mode.

        Raises:
            BadInput: the folder or its files are missing, damaged or do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(folder).is_dir():
            raise BadInput(f"There is no folder {folder}; `alitok train-classifier --out {folder}` makes a classifier.")
        try:
            classifier = cls(**json.loads((Path(folder) / "config.json").read_text()))
            classifier.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise BadInput(
                f"{folder} holds no readable classifier (config.json, model.safetensors): train it again."
            ) from error
        return classifier.eval()


CLASSIFIER = Network("a classifier of the project", "model.safetensors", lambda: Classifier(10))

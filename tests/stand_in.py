"""A small TorchScript file with the interface and the module names of the 2015 Inception's, and its float64 twin."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, CLASSES, SPATIAL = 12, 6, 3 * 3 * 7


class Unit(nn.Module):
    """Convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(inputs, outputs, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2d(x))


class Mixed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Unit(channels, 9)
        self.tower = Unit(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], dim=1)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3])


class Inception(nn.Module):
    """Called as the published file: pixels in 0..255, features or probabilities, with or without the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("conv", Unit(3, 16, 40, 120))
        for name in ("conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed"):
            self.layers.add_module(name, nn.Identity())
        for index in range(1, 6):
            self.layers.add_module(f"mixed_{index}", nn.Identity())
        self.layers.add_module("mixed_6", Mixed(16))
        self.layers.add_module("pool3", Pool())
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        height, width = img.shape[2], img.shape[3]
        theta = torch.eye(2, 3, device=img.device)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        theta = theta.to(torch.float32).unsqueeze(0).repeat([img.shape[0], 1, 1])
        grid = F.affine_grid(theta, [img.shape[0], 3, 299, 299], align_corners=False)
        x = F.grid_sample(img.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight)
        if not no_output_bias:
            logits = logits + self.output.bias
        return torch.softmax(logits, dim=1)


def network(seed: int = 0) -> Inception:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Inception()
        nn.init.normal_(module.layers.conv.conv2d.weight, std=0.05)
        nn.init.normal_(module.output.weight, std=3.0)
    return module.eval()


def write(path: Path, seed: int = 0) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(network(seed)), str(path))
    return path


class Wide(nn.Module):
    """Pooled features of the width that clean-fid insists on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 16, 64), nn.AdaptiveAvgPool2d(1))

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = nn.functional.interpolate(img, size=[299, 299], mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


def write_wide(path: Path) -> Path:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(Wide()), str(path))
    return path


def truth(images: np.ndarray[Any, Any], seed: int = 0) -> tuple[Any, Any, Any]:
    """Pooled (N, F), spatial (N, S) and probabilities (N, C) of images (N, H, W, 3), in float64.

    The resize is TensorFlow 1's, written out: output pixel i lies at input pixel i * side / 299.
    """
    module = network(seed).double()
    x = images.astype(np.float64)
    for axis in (1, 2):
        side = x.shape[axis]
        place = np.arange(299) * (side / 299)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, side - 1)
        weight = np.expand_dims(place - low, tuple({0, 1, 2, 3} - {axis}))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    with torch.no_grad():
        hidden = module.layers.conv(torch.from_numpy((x - 128) / 128).permute(0, 3, 1, 2))
        spatial = module.layers.mixed_6.conv(hidden)[:, :7].permute(0, 2, 3, 1).flatten(1)
        pooled = module.layers.mixed_6(hidden).mean(dim=(2, 3))
        probabilities = (pooled @ module.output.weight.T).softmax(dim=1)
    return pooled.numpy(), spatial.numpy(), probabilities.numpy()

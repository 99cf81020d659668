"""A small classifier whose features replace Inception's if that file is not available."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.random import derive_seed, stream
from alitok.evaluation.extractors import Features, check_images
from alitok.networks.classifier import Classifier

Batch = tuple[Tensor, Tensor]


def array_batches(images: Tensor, labels: Tensor, batch_size: int = 64, seed: int = 0) -> Iterator[Batch]:
    """Endless shuffled batches from a data set in memory.

    Args:
        images: (M, 3, H, W) uint8, or float in [0, 1].
        labels: (M,) int64.

    Raises:
        BadInput: no images, or a different number of labels.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise BadInput(f"{len(images)} images with {len(labels)} labels: give as many labels as images, at least one.")
    for epoch in itertools.count():
        order = torch.randperm(len(images), generator=stream(seed, "classifier order", epoch))
        for rows in order.split(batch_size):
            yield images[rows], labels[rows]


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images, shift the batch by up to an eighth, add noise of up to 0.05."""
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flipped.to(images.device), images.flip(-1), images)
    height, width = images.shape[-2:]
    reach = max(1, min(height, width) // 8)
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    images = images[..., top : top + height, left : left + width]
    strength = torch.rand(len(images), 1, 1, 1, generator=generator) * 0.05
    noise = torch.randn(images.shape, generator=generator) * strength
    return (images + noise.to(images.device)).clamp(0, 1)


def train_classifier(
    batches: Iterable[Batch],
    num_classes: int,
    *,
    steps: int = 800,
    seed: int = 0,
    device: torch.device | str = "cpu",
    width: int = 24,
    learning_rate: float = 6e-3,
    progress: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train a classifier with AdamW and a one-cycle rate on lightly augmented batches; return it in eval mode.

    Args:
        batches: (images (B, 3, H, W) uint8 or float in [0, 1], labels (B,)); repeated as often as needed.
        progress: called with the step (from 1) and the loss after every step.

    Raises:
        BadInput: no steps, no batches, labels outside [0, C), or fewer batches than steps in an iterator.
    """
    if steps < 1:
        raise BadInput(f"A classifier cannot be trained for {steps} steps: give at least 1.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        classifier = Classifier(num_classes, width).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    source = iter(batches)
    for step in range(steps):
        batch = next(source, None)
        if batch is None:
            source = iter(batches)
            batch = next(source, None)
        if batch is None:
            raise BadInput(
                f"The classifier's data ended after {step} of {steps} batches: give more, or a list of them."
            )
        images, labels = batch[0].to(device), batch[1].to(device)
        if labels.min() < 0 or labels.max() >= num_classes:
            raise BadInput(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, there are {num_classes} classes."
            )
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        loss = F.cross_entropy(classifier(_augment(images, stream(seed, "classifier step", step))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, float(loss.detach()))
    return classifier.eval()


class ClassifierExtractor:
    """A trained classifier as an `Extractor`; its FID can only be compared between runs with the same classifier."""

    stand_in = True
    num_spatial = 0
    resize = "none"

    def __init__(self, classifier: Classifier, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.device = torch.device(device)
        self.digest = classifier.digest()
        self.num_features = classifier.num_features
        self._classifier = classifier.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W).

        Raises:
            BadInput: images of another type or shape.
        """
        check_images(images)
        with torch.autocast(self.device.type, enabled=False), float32_products(tf32=False):
            pooled = self._classifier.features(images.to(self.device).float() / 255)
            return Features(pooled, self._classifier.head(pooled).softmax(dim=1))


def train_and_save(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    out: Path,
    steps: int,
    width: int,
    device: torch.device | str = "cpu",
    batch: int = 128,
    seed: int = 0,
) -> "Classifier":
    """Train a classifier with a progress bar and save it to a folder.

    Args:
        images: (M, 3, H, W) uint8.
        labels: (M,).
    """
    from alitok.common.progress import counter

    with counter("Classifier", steps) as advance:
        network = train_classifier(
            array_batches(images, labels, batch, seed),
            num_classes=num_classes,
            steps=steps,
            seed=seed,
            width=width,
            device=device,
            progress=lambda step, loss: advance(1),
        )
    network.save(out)
    return network

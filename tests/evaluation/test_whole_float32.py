"""Numbers of an evaluation are made in whole float32, whatever the verb around them lets a GPU round."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_extractors import write
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alitok.common.devices import float32_products
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.clean_fid import CleanFidExtractor
from alitok.evaluation.extractors import INCEPTION_FILE, InceptionExtractor
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.profiling.bench_data import RandomInception

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.conv2d, nn.functional.linear}
PRODUCTS |= {nn.functional.conv2d, torch.conv3d, nn.functional.conv3d}


class Products(TorchFunctionMode):
    """Whether TF32 is allowed at each product and convolution within it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def note(self) -> None:
        self.seen.append(torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def products() -> Iterator[Products]:
    """As within `alitok sample`, which takes TF32."""
    with float32_products(tf32=True), Products() as products:
        yield products


class Network(nn.Module):
    """Answers as Inception's file and clean-fid's network do, with a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(3, 2048)

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        return (x.mean(dim=(2, 3)) @ self.weight).softmax(1)


def inception(folder: Path) -> Any:
    extractor = InceptionExtractor(write(folder / INCEPTION_FILE, nn.Sequential(nn.Identity())))
    extractor._network = Network()  # TorchScript's own products are not seen
    return extractor


def inception_in_parts(folder: Path) -> Any:
    extractor = inception(folder)
    extractor._output = torch.ones(5, 2048)
    extractor._in_parts = lambda pixels: (extractor._network(pixels), None)
    return extractor


def clean_fid(folder: Path) -> Any:
    extractor = CleanFidExtractor.__new__(CleanFidExtractor)
    extractor.device, extractor._network = torch.device("cpu"), Network()
    extractor._resizer = lambda image: image
    return extractor


def classifier(folder: Path) -> Any:
    return ClassifierExtractor(Classifier(3, width=2), "classifier")


def random_inception(folder: Path) -> Any:
    extractor = RandomInception.__new__(RandomInception)
    extractor.device, extractor.network = torch.device("cpu"), Network()
    return extractor


def reconstruction(folder: Path) -> Any:
    images = IMAGES.float() / 255
    return lambda _: ReconstructionMetrics().update(images, images.flip(0))


@pytest.mark.parametrize(
    "make", [inception, inception_in_parts, clean_fid, classifier, random_inception, reconstruction]
)
def test_no_product_is_rounded(make: Callable[[Path], Any], tmp_path: Path, products: Products) -> None:
    measure = make(tmp_path)
    products.seen.clear()
    measure(IMAGES)
    assert products.seen
    assert not any(products.seen)
    products.note()
    assert products.seen[-1]

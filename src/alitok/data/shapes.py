"""The embedded data set: ten kinds of colored shapes on varied backgrounds, drawn when they are read."""

import colorsys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alitok.common.errors import BadInput
from alitok.common.random import derive_seed
from alitok.data.found import Origin

Array = NDArray[np.float32]

DEFAULT_COUNTS = {"train": 20_000, "val": 2_000}


class Shapes:
    """Map-style data set of drawn pictures. Image i depends only on (seed, split, i), and its label is i mod 10.

    The picture is the same at every size. Edges are antialiased and there is no grain, so that a small tokenizer can
    learn the pictures in minutes.

    Args:
        split: "train" or "val"; the two share no random numbers.
        size: height and width in pixels.
        count: number of images; None = 20,000 for train and 2,000 for val.

    Raises:
        BadInput: the size is below 8, or the count below 1.
    """

    def __init__(self, split: str = "train", size: int = 64, count: int | None = None, seed: int = 0) -> None:
        count = DEFAULT_COUNTS.get(split, DEFAULT_COUNTS["val"]) if count is None else count
        if size < 8 or count < 1:
            raise BadInput(f"Shapes need a size of at least 8 and a count of at least 1, not {size} and {count}.")
        self.split, self.size, self.count, self.seed = split, size, count, seed
        self.name = "shapes"
        self.class_names = list(SHAPES)
        self.description = f"{count:,} drawn shapes ({split}) of {size} x {size} in {len(SHAPES)} classes"
        self.origin = Origin("drawn shapes", split)

    def __len__(self) -> int:
        return self.count

    def class_labels(self) -> np.ndarray:
        """(images,) int64."""
        return np.arange(self.count) % len(self.class_names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Image `index` (RGB) and its label."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        label = index % len(self.class_names)
        rng = np.random.default_rng(derive_seed(self.seed, "shapes", self.split, index))
        return Image.fromarray(draw(self.class_names[label], self.size, rng)), label


def draw(shape: str, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture of the named shape, (size, size, 3) uint8."""
    x, y = _grid(size)
    # Eight hues look varied, and are few enough for a small codebook.
    hue = int(rng.integers(8))
    light = rng.random() < 0.5
    first = _color(hue / 8, 0.28, 0.92) if light else _color(hue / 8, 0.4, 0.45)
    neighbor = (hue + rng.integers(-1, 2)) / 8
    second = _color(neighbor, 0.34, 0.86) if light else _color(neighbor, 0.4, 0.52)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](x, y, rng)
    picture = first + background * (second - first)  # color planes (3, size, size), float32

    # Large and nearly centered: the outline crosses most patches, so that a small tokenizer keeps the shape visible.
    radius = np.float32(rng.uniform(0.74, 0.9))
    center_x, center_y = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    angle = rng.uniform(-0.15, 0.15)
    cos, sin = np.float32(np.cos(angle)) / radius, np.float32(np.sin(angle)) / radius
    right, down = x - center_x, y - center_y
    # distances are in units of the shape's radius; a pixel is 2 / size wide in a picture of width 2
    distance = SHAPES[shape](cos * right + sin * down, cos * down - sin * right) * radius

    shift = max(1, round(0.03 * size))
    rows = np.clip(np.arange(size) - shift, 0, None)
    shadow = np.clip(0.5 - distance[rows][:, rows] * 7, 0, 1) * np.float32(0.14)
    picture *= 1 - shadow

    ink = _color((hue + rng.integers(3, 6)) / 8, 0.6, 0.62 if light else 0.88)
    shade = 1 + np.float32(0.16) * np.clip(-(right + down) / radius, -1, 1)
    cover = np.clip(0.5 - distance * np.float32(size / 2), 0, 1)
    picture += cover * (ink * shade - picture)
    pixels = np.clip(picture, 0, 1) * 255 + np.float32(0.5)
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centers in [-1, 1]: x (to the right) and y (downwards), both (size, size)."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _color(hue: float, saturation: float, value: float) -> Array:
    """RGB (3, 1, 1), which broadcasts over color planes."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)[:, None, None]


# Shapes: coordinates in units of the radius (y downwards) -> signed distance, negative inside


def _circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(0.9)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.22)


def _crescent(x: Array, y: Array) -> Array:
    outer = np.sqrt(x * x + y * y) - np.float32(0.95)
    inner = np.sqrt((x - 0.45) ** 2 + y * y) - np.float32(0.72)
    return np.maximum(outer, -inner)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.95, y - 0.32), np.maximum(x - 0.32, y - 0.95))


def _flower(x: Array, y: Array) -> Array:
    """Five disks around a sixth."""
    length = np.sqrt(x * x + y * y)
    turn = np.float32(2 * np.pi / 5)
    angle = np.mod(np.arctan2(x, -y) + turn / 2, turn) - turn / 2
    petal = np.sqrt(length**2 + 0.36 - 1.2 * length * np.cos(angle)) - np.float32(0.35)
    return np.minimum(petal, length - np.float32(0.42))


def _heart(x: Array, y: Array) -> Array:
    """Two disks above a wedge."""
    x = np.abs(x)
    discs = np.sqrt((x - 0.43) ** 2 + (y + 0.3) ** 2) - np.float32(0.5)
    # the disk's tangent at 45 degrees closes the heart below
    wedge = np.maximum((x - 0.43 + y + 0.3) * np.float32(0.7071) - np.float32(0.5), -y - 0.3 + (x - 0.43))
    return np.minimum(discs, wedge)


def _polygon(*corners: tuple[float, float]) -> Callable[[Array, Array], Array]:
    """Signed distance to a closed polygon."""
    points = np.array(corners, dtype=np.float32)
    edges = np.roll(points, -1, axis=0) - points

    def distance(x: Array, y: Array) -> Array:
        nearest = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, dtype=bool)
        for (left, top), (width, height) in zip(points, edges, strict=True):
            right, down = x - left, y - top
            along = np.clip((right * width + down * height) / (width * width + height * height), 0, 1)
            np.minimum(nearest, (right - along * width) ** 2 + (down - along * height) ** 2, out=nearest)
            if height != 0:  # the edge crosses the ray to the right of the point
                inside ^= ((down >= 0) ^ (down >= height)) & (right < down * (width / height))
        return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)

    return distance


def _star_corners(points: int = 5, inner: float = 0.45) -> list[tuple[float, float]]:
    turns = np.arange(2 * points) * np.pi / points
    lengths = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return [(float(r * np.sin(a)), float(-r * np.cos(a))) for r, a in zip(lengths, turns, strict=True)]


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon((0, -0.95), (0.95, 0.75), (-0.95, 0.75)),
    "star": _polygon(*_star_corners()),
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "arrow": _polygon((1, 0), (0.1, -0.85), (0.1, -0.3), (-0.95, -0.3), (-0.95, 0.3), (0.1, 0.3), (0.1, 0.85)),
    "flower": _flower,
}


# Backgrounds: coordinates in [-1, 1] -> mixture of the two colors, in [0, 1]


def _flat(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return np.zeros_like(x)


def _along(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """The coordinate along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y


def _gradient(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return np.clip(0.5 + _along(x, y, rng) * np.float32(0.4), 0, 1)


def _radial(x: Array, y: Array, rng: np.random.Generator) -> Array:
    center_x, center_y = rng.uniform(-0.7, 0.7, 2).astype(np.float32)
    return np.clip(1 - np.sqrt((x - center_x) ** 2 + (y - center_y) ** 2) / 2, 0, 1)


def _stripes(x: Array, y: Array, rng: np.random.Generator) -> Array:
    wave = np.sin(_along(x, y, rng) * np.float32(rng.uniform(5, 9)) + np.float32(rng.uniform(0, 6.28)))
    return np.clip(0.5 + 1.8 * wave, 0, 1) * np.float32(0.7)


def _checker(x: Array, y: Array, rng: np.random.Generator) -> Array:
    frequency, shift_x, shift_y = rng.uniform([4, 0, 0], [7, 6.28, 6.28]).astype(np.float32)
    wave = np.sin(x * frequency + shift_x) * np.sin(y * frequency + shift_y)
    return np.clip(0.5 + 3 * wave, 0, 1) * np.float32(0.6)


def _dots(x: Array, y: Array, rng: np.random.Generator) -> Array:
    frequency, shift_x, shift_y = rng.uniform([6, 0, 0], [9, 6.28, 6.28]).astype(np.float32)
    wave = np.sin(x * frequency + shift_x) + np.sin(y * frequency + shift_y)
    return np.clip(1.6 * wave - 1.2, 0, 1) * np.float32(0.7)


def _clouds(x: Array, y: Array, rng: np.random.Generator) -> Array:
    knots = 5
    nodes = np.linspace(-1, 1, knots, dtype=np.float32)
    near = np.clip(1 - np.abs(x[0][:, None] - nodes) * ((knots - 1) / 2), 0, 1)
    weights = near * near * (3 - 2 * near)
    return weights @ rng.random((knots, knots), dtype=np.float32) @ weights.T


BACKGROUNDS: tuple[Callable[[Array, Array, np.random.Generator], Array], ...] = (
    _flat,
    _gradient,
    _radial,
    _stripes,
    _checker,
    _dots,
    _clouds,
)

"""The published generators: the release's sampling settings, and its numbers. Plain data, so that --help is fast."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A published generator and its expected numbers: ImageNet 256 x 256, ADM's evaluator.

    The tolerances are our choice. They cover different random numbers (two sets of 50,000 samples differ by one or two
    percent in FID) and the rounding of the published numbers.
    """

    width: int
    depth: int
    guidance: float
    power: float
    seed: int
    fid: float
    inception_score: float
    count: int = 50_000
    fid_tolerance: float = 0.05
    inception_score_tolerance: float = 6.0


# From the release's README.
PRESETS = {
    "177M": Preset(768, 24, 16.0, 1.8, 42, 1.50, 305.9),
    "318M": Preset(1024, 24, 6.0, 0.7, 42, 1.42, 326.6),
    "662M": Preset(1280, 32, 13.0, 1.4, 2, 1.35, 318.8),
}


def preset_of(width: int, depth: int) -> tuple[str, Preset] | None:
    """(name, preset) of the published generator with this width and number of layers, or None."""
    return next(((name, one) for name, one in PRESETS.items() if (one.width, one.depth) == (width, depth)), None)

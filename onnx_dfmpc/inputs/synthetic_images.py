"""Pictures of nothing with the statistics of photographs (NumPy).

Two kinds, since what a layer deep in a network sees depends on what the picture shows, and neither shows
enough:

 * dead leaves (Lee, Mumford & Huang, IJCV 2001): shapes of all sizes, radii by a power law, that cover one
   another, with a gentle shading and a texture. They have the edges, the scale invariance and the colour
   correlation of photographs.
 * surfaces: a few large shapes in front of a gradient, with stripes here and there: the smooth places, and
   the regular ones.

Colours have most of their variance in common between channels. As in a camera, a pixel is the mean over its
area: pictures are drawn at twice the size. Contrast differs from picture to picture. Values have mean about 0
and variance about 1.
"""

from __future__ import annotations

import numpy as np

from onnx_dfmpc.inputs.synthetic import natural_spectrum
from onnx_dfmpc.spec import Array

COMMON = 0.85
"""Share of the variance of a colour that all channels have in common."""


CONTRAST = (0.4, 1.4)
"""Range of the contrast of a picture, which is about 1 in the mean."""

FINER = 2
"""Places along each axis of a pixel."""


def picture(kind: int, channels: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """One picture of kind 0 or 1, shape (channels, height, width)."""
    draw = (dead_leaves, surfaces)[kind]
    fine = draw(channels, FINER * height, FINER * width, rng)
    pixels: Array = fine.reshape(channels, height, FINER, width, FINER).mean(axis=(2, 4))
    return rng.uniform(*CONTRAST) * pixels


def dead_leaves(channels: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Shapes of all sizes that cover one another, shape (channels, height, width)."""
    size = max(height, width)
    image = np.empty((channels, height, width))
    image[:] = rng.standard_normal() + 0.5 * rng.standard_normal((channels, 1, 1))
    smallest, largest = size / 16, size / 1.5
    share = rng.random(int(rng.integers(10, 80)))
    for radius in 1 / np.sqrt(share / smallest**2 + (1 - share) / largest**2):  # density ~ r^-3
        _leaf(image, radius, size, rng)
    return image + rng.uniform(0, 0.6) * natural_spectrum((channels, height, width), rng)


def surfaces(channels: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Few large shapes in front of a gradient, and patches of stripes, shape (channels, height, width)."""
    size = max(height, width)
    y, x = np.mgrid[:height, :width] / size - 0.5
    image = _colour(channels, rng) + 2 * _colour(channels, rng) * _along(x, y, rng)
    for radius in rng.uniform(size / 8, size / 2, int(rng.integers(2, 8))):
        _leaf(image, radius, size, rng)
    frequency = np.exp(rng.uniform(np.log(2), np.log(max(size / 4, 3))))
    stripes = np.sin(2 * np.pi * (frequency * _along(x, y, rng) + rng.random()))
    patches = natural_spectrum((1, height, width), rng, steepness=1.5) > 0.7 * rng.standard_normal()
    image += 0.8 * rng.random() * _colour(channels, rng) * stripes * patches
    return image


def _leaf(image: Array, radius: float, size: int, rng: np.random.Generator) -> None:
    """Paint one shape, an ellipse or a rectangle, over the image."""
    channels, height, width = image.shape
    x, y = rng.random(2) * (width, height)
    angle = rng.random() * np.pi
    other = radius * rng.uniform(0.3, 1)
    reach = np.hypot(radius, other)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, height)
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, width)
    dy, dx = np.mgrid[top:bottom, left:right] - np.array([y, x])[:, None, None]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    if rng.random() < 0.5:
        inside = (u / radius) ** 2 + (v / other) ** 2 < 1
    else:
        inside = (np.abs(u) < radius) & (np.abs(v) < other)
    shade = 0.7 * rng.standard_normal() * u / size
    region = image[:, top:bottom, left:right]
    region[:] = np.where(inside, _colour(channels, rng) + shade, region)


def _colour(channels: int, rng: np.random.Generator) -> Array:
    """Random colour, shape (channels, 1, 1)."""
    colour: Array = np.sqrt(COMMON) * rng.standard_normal() + np.sqrt(1 - COMMON) * rng.standard_normal(
        (channels, 1, 1)
    )
    return colour


def _along(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Coordinate along a random direction."""
    angle = rng.random() * 2 * np.pi
    along: Array = x * np.cos(angle) + y * np.sin(angle)
    return along

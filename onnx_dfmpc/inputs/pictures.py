"""Pictures of nothing with the statistics of photographs (NumPy).

Two kinds, since what a layer deep in a network sees depends on what the picture shows, and neither kind shows
enough:

 * dead leaves (Lee, Mumford & Huang, IJCV 2001): shapes of all sizes that cover one another, with a gentle
   shading and a texture. They have the edges, the scale invariance and the colour correlation of photographs.
 * surfaces: a few large shapes in front of a gradient, with stripes here and there: the smooth places, and
   the regular ones.

Values have mean about 0 and variance about 1.

A large picture is put together of the quarters of four. What a layer sees at neighbouring positions is nearly
the same, so a sample of its patches is worth as much as there are different things in it, and four pictures
show more than one, for the same time in the network.

Where the numbers come from: the law of the radii is the paper's. Two kinds instead of one, drawing at twice
the size and a contrast per picture were measured together (docs/method.md, section 1: correlations 5 to 15 %
nearer to those of real images, output SQNR +0.1 to +0.6 dB on six of eight networks, two seeds each). All
other numbers are first choices by eye, the same for all networks; none of them was tuned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from onnx_dfmpc.spec import Array

COMMON = 0.85
"""Share of the variance of a colour that all channels have in common; a choice."""

CONTRAST = (0.4, 1.4)
"""Range of the contrast of a picture, 0.9 in the mean; that it varies was measured, the range is a choice."""

OVERSAMPLING = 2
"""Points along each axis of a pixel, whose mean it is: a camera integrates over a pixel's area, so edges
are soft. Measured against 1 only.
"""


QUARTERED = 96
"""Shorter side from which on a picture is made of quarters. docs/accuracy.md has what they are worth.
Networks that read 32 pixels are the same in the mean, with more scatter; between 32 and 128 nothing was
measured.
"""


@dataclass(frozen=True)
class Window:
    """The part of a picture that is drawn: ``height`` rows from ``top`` on, ``width`` columns from ``left``
    on, of a picture of ``of`` rows and columns.
    """

    top: int
    left: int
    height: int
    width: int
    of: tuple[int, int]


def picture(kind: int, channels: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Dead leaves (kind 0) or surfaces (kind 1), float32, shape (channels, height, width); of a large picture
    the quarters are of either kind in turn.
    """
    parts = 2 if min(height, width) >= QUARTERED else 1
    rows, columns = np.linspace((0, 0), (height, width), parts + 1, dtype=int).T.tolist()
    image = np.empty((channels, height, width), np.float32)
    for i, j in product(range(parts), repeat=2):
        top, left = rows[i], columns[j]
        window = Window(top, left, rows[i + 1] - top, columns[j + 1] - left, (height, width))
        contrast, draw = np.float32(rng.uniform(*CONTRAST)), (dead_leaves, surfaces)[(kind + i + j) % 2]
        image[:, top : rows[i + 1], left : columns[j + 1]] = contrast * draw(channels, window, rng)
    return image


def dead_leaves(channels: int, window: Window, rng: np.random.Generator) -> Array:
    """Shapes of all sizes that cover one another, shape (channels, height, width)."""
    image = _canvas(channels, window)
    size = OVERSAMPLING * max(window.of)
    # The background, where no leaf falls: a tint (0.5 per channel) of a shade that all channels share.
    image[:] = rng.standard_normal() + 0.5 * rng.standard_normal((channels, 1, 1))
    # From a sixteenth of the picture, a few pixels of a small one, to leaves that nearly fill it.
    smallest, largest = size / 16, size / 1.5
    # 10 leaves leave large plain areas, 80 cover nearly everything.
    share = rng.random(int(rng.integers(10, 80)))
    # Inverse of the distribution function of a density ~ r^-3 on that interval: the only law whose pictures
    # look the same at every scale (Lee, Mumford & Huang).
    for radius in 1 / np.sqrt(share / smallest**2 + (1 - share) / largest**2):
        _paint_leaf(image, radius, window, rng)
    # Texture, from none to one with 0.6 of the deviation of the colours.
    shape = (channels, window.height, window.width)
    return _pixels(image) + rng.uniform(0, 0.6) * natural_spectrum(shape, rng)


def surfaces(channels: int, window: Window, rng: np.random.Generator) -> Array:
    """Few large shapes in front of a gradient, and patches of stripes, shape (channels, height, width)."""
    image = _canvas(channels, window)
    size = OVERSAMPLING * max(window.of)
    y, x = (
        np.arange(OVERSAMPLING * first, OVERSAMPLING * (first + length), dtype=np.float32) / size - 0.5
        for first, length in ((window.top, window.height), (window.left, window.width))
    )
    y = y[:, None]
    # Twice a colour from edge to edge: the gradient's own variance is then a third of the colours'.
    image[:] = _colour(channels, rng) + 2 * _colour(channels, rng) * _along(x, y, rng)
    for radius in rng.uniform(size / 8, size / 2, int(rng.integers(2, 8))):
        _paint_leaf(image, radius, window, rng)
    # From two periods across the picture to four points per period, equally likely in every octave.
    frequency = np.exp(rng.uniform(np.log(2), np.log(max(size / 4, 3))))
    stripes = np.sin(2 * np.pi * (frequency * _along(x, y, rng) + rng.random()), dtype=np.float32)
    # Noise smoother than photographs (f^-1.5) over a threshold: a few coherent patches. The threshold has a
    # deviation of 0.7, so that the stripes cover almost nothing in some pictures and almost all in others.
    noise = natural_spectrum((1, window.height, window.width), rng, steepness=1.5)
    patches = noise > 0.7 * rng.standard_normal()
    patches = patches.repeat(OVERSAMPLING, axis=1).repeat(OVERSAMPLING, axis=2)
    # At most 0.8 of a colour: weaker than the edges of the shapes.
    image += (0.8 * rng.random() * _colour(channels, rng)) * (stripes * patches)
    return _pixels(image)


def _canvas(channels: int, window: Window) -> Array:
    return np.empty((channels, OVERSAMPLING * window.height, OVERSAMPLING * window.width), np.float32)


def _pixels(fine: Array) -> Array:
    """Means over the points of each pixel."""
    channels, height, width = fine.shape
    blocks = fine.reshape(channels, height // OVERSAMPLING, OVERSAMPLING, width // OVERSAMPLING, OVERSAMPLING)
    pixels: Array = blocks.mean(axis=(2, 4))
    return pixels


def _paint_leaf(image: Array, radius: float, window: Window, rng: np.random.Generator) -> None:
    """Paint one shape, as often an ellipse as a rectangle, over the part of a picture, in place."""
    channels, height, width = image.shape
    size = OVERSAMPLING * max(window.of)
    x, y = OVERSAMPLING * (rng.random(2) * window.of[::-1] - (window.left, window.top))
    angle = rng.random() * np.pi
    other = radius * rng.uniform(0.3, 1)  # the second half-axis: elongated, but not a line
    reach = np.hypot(radius, other)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, height)
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, width)
    if top >= bottom or left >= right:
        return
    dy = (np.arange(top, bottom, dtype=np.float32) - np.float32(y))[:, None]
    dx = np.arange(left, right, dtype=np.float32) - np.float32(x)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    if rng.random() < 0.5:
        inside = (u / radius) ** 2 + (v / other) ** 2 < 1
    else:
        inside = (np.abs(u) < radius) & (np.abs(v) < other)
    # A slope of deviation 0.7 across the whole picture, as of a curved surface under one light.
    shade = np.float32(0.7 * rng.standard_normal() / size) * u
    region = image[:, top:bottom, left:right]
    for layer, colour in zip(region, _colour(channels, rng).ravel(), strict=True):
        np.copyto(layer, colour + shade, where=inside)


def _colour(channels: int, rng: np.random.Generator) -> Array:
    """Random colour of variance 1, shape (channels, 1, 1)."""
    shared, own = rng.standard_normal(), rng.standard_normal((channels, 1, 1))
    colour: Array = (np.sqrt(COMMON) * shared + np.sqrt(1 - COMMON) * own).astype(np.float32)
    return colour


def _along(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Coordinate along a random direction."""
    angle = rng.random() * 2 * np.pi
    along: Array = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    return along


def natural_spectrum(
    shape: tuple[int, int, int], rng: np.random.Generator, *, steepness: float = 1.0
) -> Array:
    """Noise of variance 1 over many draws, shape (channels, height, width), with the amplitude spectrum of
    photographs, ``frequency ** -1`` (Field 1987), and their correlation between channels.
    """
    channels, *sides = shape
    height, width = (fast_length(side) for side in sides)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = np.maximum(frequency, 1.0 / max(sides)) ** -steepness
    shared = rng.standard_normal((1, height, width), np.float32)
    own = rng.standard_normal((channels, height, width), np.float32)
    # 0.8 of the variance in common, as COMMON: a choice
    white = own if channels == 1 else np.float32(np.sqrt(0.8)) * shared + np.float32(np.sqrt(0.2)) * own
    return _with_spectrum(white, amplitude)[:, : sides[0], : sides[1]]


def fast_length(size: int) -> int:
    """Least length from ``size`` on whose Fourier transform is fast: it has no prime factor above 5.

    >>> [fast_length(size) for size in (32, 211, 227)]
    [32, 216, 240]
    """
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


def smooth_noise(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Noise of variance 1 with a 1/f spectrum along every axis but the first (the channels)."""
    white = rng.standard_normal(shape, np.float32)
    if len(shape) < 2:
        return white
    steps = [*(np.fft.fftfreq(size) for size in shape[1:-1]), np.fft.rfftfreq(shape[-1])]
    frequencies = np.meshgrid(*steps, indexing="ij", sparse=True)
    squares: Any = sum(np.square(frequency) for frequency in frequencies)
    return _with_spectrum(white, 1 / np.sqrt(np.maximum(squares, 1 / max(shape[1:]) ** 2)))


def _with_spectrum(white: Array, amplitude: Array) -> Array:
    """White noise (channels, ...) with another amplitude spectrum, of the same variance.

    ``amplitude`` is that of a real transform, which has the frequencies of the last axis once: those between
    the lowest and the highest stand for two.
    """
    axes, sizes = tuple(range(1, white.ndim)), white.shape[1:]
    twice = np.full(amplitude.shape[-1], 2.0)
    twice[0] = 1
    if sizes[-1] % 2 == 0:
        twice[-1] = 1
    power = float((np.square(amplitude) * twice).sum()) / math.prod(sizes)
    shaped = (amplitude / np.sqrt(power)).astype(np.float32)
    filtered: Array = np.fft.irfftn(np.fft.rfftn(white, axes=axes) * shaped, s=sizes, axes=axes)
    return filtered.astype(np.float32, copy=False)

"""Drawn pictures: their moments, and the quarters of large ones."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_dfmpc.inputs.pictures import OVERSAMPLING, QUARTERED, Window, dead_leaves, picture, surfaces


def drawn(height: int, width: int, count: int = 24) -> np.ndarray:
    return np.stack([picture(i % 2, 3, height, width, np.random.default_rng(i)) for i in range(count)])


@pytest.mark.parametrize(("height", "width"), [(24, 24), (QUARTERED, QUARTERED + 5), (QUARTERED + 33, 110)])
def test_any_size_has_about_the_same_moments(height: int, width: int) -> None:
    found = drawn(height, width)
    assert found.shape == (24, 3, height, width)
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 0.4
    assert 0.3 < found.var() < 2


def test_large_pictures_show_four_times_as_much() -> None:
    """The quarters of a large picture are as far from one another as two pictures are; those of a small one,
    which have objects and contrast in common, are not.
    """

    def likeness(side: int) -> float:
        """Correlation of the colours of the quarters, over pictures."""
        found = drawn(side, side, 160)
        half = side // 2
        left, right = found[:, :, :half, :half].mean(axis=(2, 3)), found[:, :, :half, half:].mean(axis=(2, 3))
        return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])

    assert abs(likeness(QUARTERED)) < 0.2
    assert likeness(QUARTERED - 2) > 0.3


@pytest.mark.parametrize("draw", [dead_leaves, surfaces])
def test_a_window_has_the_scale_of_its_picture(draw) -> None:  # type: ignore[no-untyped-def]
    """A quarter shows objects of the size that they have in the whole picture, and not a picture of half the
    size: its steps from pixel to pixel are as large.
    """

    def steps(window: Window) -> float:
        found = np.stack([draw(1, window, np.random.default_rng(i)) for i in range(60)])
        # the median is not that of texture or of stripes alone
        return float(np.abs(np.diff(found, axis=3)).mean())

    whole = steps(Window(0, 0, 64, 64, (64, 64)))
    quarters = [steps(Window(top, left, 32, 32, (64, 64))) for top in (0, 32) for left in (0, 32)]
    alone = steps(Window(0, 0, 32, 32, (32, 32)))
    assert np.mean(quarters) == pytest.approx(whole, rel=0.25)
    assert alone > 1.25 * whole


def test_a_window_that_no_shape_touches_is_background() -> None:
    window = Window(0, 0, 2, 2, (512, 512))
    for seed in range(20):
        found = dead_leaves(1, window, np.random.default_rng(seed))
        assert found.shape == (1, 2, 2)
        assert np.isfinite(found).all()
    assert OVERSAMPLING == 2

"""The table of top-1 at one eighth of the bytes says where half a point is not met."""

import pytest

from benchmarks import eighth


@pytest.mark.parametrize(
    ("losses", "said"), [((0.002, 0.006), "0.4"), ((0.0, 0.02), "**1.0**"), ((0.0001, -0.0002), "0.0")]
)
def test_a_mean_loss_of_more_than_half_a_point_is_bold(losses: tuple[float, ...], said: str) -> None:
    rows = [
        eighth.Row("har_conv1d_bn", "float", seed, 950, 800, 0.94, "", 100, 0.94 - loss, -0.01, 0.01)
        for seed, loss in enumerate(losses)
    ]
    line = next(one for one in eighth.table(rows).splitlines() if one.startswith("| HAR"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == "8.00"
    assert cells[5] == said
    assert cells[6:] == ["", ""]  # nothing with 8-bit activations


def test_a_network_that_does_not_get_that_small_is_said_to() -> None:
    failed = eighth.Row("har_conv1d_bn", "8-bit", 0, 950, 800, 0.94, "", failed="no plan is that small")
    assert "| no file |" in eighth.table([failed])

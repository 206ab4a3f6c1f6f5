"""How well each provider of statistics knows what the layers see, against real inputs: recorded, so that it
cannot get worse unseen.

``python -m benchmarks.statistics`` prints the whole table, every network at every layer.
"""

from functools import cache

import numpy as np
import pytest

from benchmarks import statistics
from benchmarks.networks import network

IMAGES = 48
MARGIN = 1.15
SLACK = 0.005
"""An average error may be so many times what was measured when it was recorded, and so much more. Real and
synthetic inputs are the same in every run; what varies is the order of sums in other versions of the
libraries, far less than this.
"""

# network -> provider -> errors of standard deviation (relative), mean (in standard deviations) and
# correlation, averaged over layers
RECORDED = {
    "digits_resnet_bn": {
        "closed form": (0.276, 0.138, 0.1336),
        "probe": (0.174, 0.111, 0.1119),
        "calibration": (0.075, 0.045, 0.0422),
    },
    "digits_resnet_folded": {
        "closed form": (0.763, 0.657, 0.1663),
        "probe": (0.610, 0.626, 0.1766),
        "calibration": (0.075, 0.045, 0.0422),
    },
    "cifar10_resnet20_bn": {
        "closed form": (0.191, 0.101, 0.0801),
        "probe": (0.174, 0.098, 0.0554),
        "calibration": (0.064, 0.047, 0.0333),
    },
    "cifar10_resnet20_folded": {
        "closed form": (0.302, 0.194, 0.0805),
        "probe": (0.142, 0.110, 0.0527),
        "calibration": (0.064, 0.047, 0.0333),
    },
    "cifar10_resnet56_bn": {"closed form": (0.227, 0.099, 0.0725), "probe": (0.150, 0.086, 0.0469)},
    "cifar10_resnet56_folded": {"probe": (0.137, 0.103, 0.0458)},
    "cifar10_shufflenetv2_x0_5_folded": {
        "closed form": (0.291, 0.231, 0.1105),
        "probe": (0.181, 0.138, 0.0591),
    },
    "imagenet_squeezenet1_1": {"probe": (0.214, 0.189, 0.0766)},
    "cifar10_resnet8_keras_bn": {
        "closed form": (0.166, 0.133, 0.0888),
        "probe": (0.127, 0.138, 0.0594),
        "calibration": (0.049, 0.046, 0.0379),
    },
    "cifar10_shufflenetv2_x0_5_bn": {
        "closed form": (0.252, 0.153, 0.1016),
        "probe": (0.246, 0.147, 0.0590),
        "calibration": (0.077, 0.053, 0.0366),
    },
    "har_conv1d_bn": {
        "closed form": (0.177, 0.087, 0.1682),
        "probe": (0.188, 0.095, 0.1405),
        "calibration": (0.071, 0.055, 0.0545),
    },
    "har_conv1d_folded": {
        "closed form": (0.257, 0.198, 0.1750),
        "probe": (0.248, 0.179, 0.1584),
        "calibration": (0.071, 0.055, 0.0545),
    },
    "wakeword_bn": {
        "closed form": (1.110, 0.348, 0.1949),
        "probe": (1.211, 0.525, 0.2152),
        "calibration": (0.145, 0.136, 0.0976),
    },
    "imagenet_mobilenet_v1_025_128_folded": {
        "closed form": (0.575, 0.566, 0.1294),
        "probe": (0.276, 0.226, 0.0670),
        "calibration": (0.063, 0.055, 0.0381),
    },
}


QUICK = ("cifar10_resnet20_bn", "har_conv1d_folded", "wakeword_bn")


@cache
def measured(name: str, *providers: str) -> tuple[list[statistics.Errors], list[statistics.Summary]]:
    errors, seconds = statistics.compare(network(name), images=IMAGES, providers=providers)
    return errors, statistics.summarize(errors, seconds)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith("digits") or name in QUICK else pytest.mark.slow)
        for name in RECORDED
    ],
)
def test_errors_have_not_grown(name, request):
    if not name.startswith("digits"):
        request.getfixturevalue("shared_dir")
    if name.startswith("imagenet"):
        pytest.importorskip("PIL")
    recorded = RECORDED[name]
    _, summaries = measured(name, *recorded)
    print(f"\n{'network':34}{'provider':12}{'std':>8}{'mean':>8}{'correlation':>13}")
    for s in summaries:
        print(f"{s.network:34}{s.provider:12}{s.std:8.3f}{s.mean:8.3f}{s.correlation:13.4f}")
    for s in summaries:
        bounds = np.array(recorded[s.provider]) * MARGIN + SLACK
        assert np.all(np.array([s.std, s.mean, s.correlation]) <= bounds), (
            f"{s.provider}: at most {bounds.round(4)} allowed"
        )


def test_deviations_late_in_a_deep_residual_network(shared_dir):
    """Branches of a residual block are correlated, by `closed_form.BRANCHES`; at 0 the least of these is 0.34."""
    errors, _ = measured("cifar10_resnet56_bn", "closed form", "probe")
    late = [error.ratio for error in errors if error.provider == "closed form"][-20:-1]
    assert len(late) == 19
    assert 0.7 < np.median(late) < 1.3
    assert min(late) > 0.4
    assert max(late) < 1.4


def test_errors_of_the_truth_itself_are_zero():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((2, 5, 5))
    truth = statistics.InputStatistics(
        rng.standard_normal((2, 5)), (root @ root.swapaxes(1, 2)).astype(np.float32), 10, "calibration"
    )
    assert statistics.errors(truth, truth) == pytest.approx((0, 0, 0, 1))
    twice = statistics.InputStatistics(truth.mean, truth.covariance * 4, 10, "probe")
    assert statistics.errors(twice, truth) == pytest.approx((1, 0, 0, 2), abs=1e-6)

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
        "closed form": (0.280, 0.150, 0.1372),
        "probe": (0.171, 0.120, 0.1085),
        "calibration": (0.081, 0.052, 0.0482),
    },
    "digits_resnet_folded": {
        "closed form": (0.376, 0.247, 0.1616),
        "probe": (0.255, 0.281, 0.1233),
        "calibration": (0.081, 0.052, 0.0482),
    },
    "cifar10_resnet20_bn": {
        "closed form": (0.193, 0.109, 0.0833),
        "probe": (0.182, 0.113, 0.0688),
        "calibration": (0.077, 0.057, 0.0429),
    },
    "cifar10_resnet20_folded": {
        "closed form": (0.471, 0.256, 0.0849),
        "probe": (0.265, 0.145, 0.0811),
        "calibration": (0.077, 0.057, 0.0429),
    },
    "cifar10_resnet56_bn": {"closed form": (0.233, 0.110, 0.0755), "probe": (0.165, 0.102, 0.0561)},
    "cifar10_resnet56_folded": {"probe": (0.233, 0.148, 0.0710)},
    "cifar10_shufflenetv2_x0_5_folded": {
        "closed form": (0.300, 0.239, 0.1159),
        "probe": (0.260, 0.162, 0.0939),
    },
    "imagenet_squeezenet1_1": {"probe": (0.249, 0.217, 0.1040)},
    "cifar10_resnet8_keras_bn": {
        "closed form": (0.176, 0.137, 0.0956),
        "probe": (0.140, 0.148, 0.0830),
        "calibration": (0.065, 0.060, 0.0510),
    },
    "cifar10_shufflenetv2_x0_5_bn": {
        "closed form": (0.265, 0.171, 0.1081),
        "probe": (0.281, 0.176, 0.0829),
        "calibration": (0.101, 0.068, 0.0566),
    },
    "har_conv1d_bn": {
        "closed form": (0.185, 0.088, 0.1682),
        "probe": (0.204, 0.096, 0.1501),
        "calibration": (0.075, 0.059, 0.0579),
    },
    "har_conv1d_folded": {
        "closed form": (0.486, 0.299, 0.1897),
        "probe": (0.494, 0.307, 0.1823),
        "calibration": (0.075, 0.059, 0.0579),
    },
    "wakeword_bn": {
        "closed form": (0.318, 0.349, 0.1951),
        "probe": (0.427, 0.522, 0.2093),
        "calibration": (0.146, 0.135, 0.0980),
    },
    "imagenet_mobilenet_v1_025_128_folded": {
        "closed form": (0.585, 0.578, 0.1346),
        "probe": (0.297, 0.241, 0.0899),
        "calibration": (0.077, 0.071, 0.0534),
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

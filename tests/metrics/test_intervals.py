"""Confidence intervals of shares."""

import pytest

from hf_qrnn.metrics.intervals import wilson_interval


def test_wilson_interval_solves_its_equation() -> None:
    # The bounds are the shares p that lie z standard errors of their own from the share found.
    for right, number in ((9, 10), (11425, 12501), (1, 3)):
        for bound in wilson_interval(right, number):
            distance = abs(right / number - bound) / (bound * (1 - bound) / number) ** 0.5
            assert distance == pytest.approx(1.959964, abs=1e-5)


def test_wilson_interval_at_its_ends_and_levels() -> None:
    low, high = wilson_interval(10, 10)
    assert high == 1.0
    assert low == pytest.approx(0.7225, abs=1e-4)  # z^2 = 3.8415: 10 / (10 + 3.8415)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 1 - low))
    narrow, wide = (wilson_interval(5, 10, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]

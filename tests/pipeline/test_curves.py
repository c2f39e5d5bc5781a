"""Curves from histograms are those of scikit-learn, to a bin."""

import numpy as np
import pytest
from sklearn import metrics

from espalier.pipeline import curves

BINS = 200


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    has = rng.random(5000) < 0.3
    scores = np.clip(rng.normal(np.where(has, 0.65, 0.4), 0.2), 0, 1)
    return has, scores


def histograms(has: np.ndarray, scores: np.ndarray) -> tuple[list[int], list[int]]:
    def of(part: np.ndarray) -> list[int]:
        return [int(count) for count in np.histogram(part, BINS, (0, 1))[0]]

    return of(scores[~has]), of(scores[has])


def test_the_area_is_the_auc(rows: tuple[np.ndarray, np.ndarray]) -> None:
    has, scores = rows
    line = curves.roc(*histograms(has, scores))
    assert line[0] == (0, 0) and line[-1] == (1, 1)
    assert curves.area(line) == pytest.approx(metrics.roc_auc_score(has, scores), abs=2e-3)


def test_precision_at_each_recall(rows: tuple[np.ndarray, np.ndarray]) -> None:
    has, scores = rows
    found = curves.precision_recall(*histograms(has, scores))
    said = scores >= 0.5
    expected = (metrics.recall_score(has, said), metrics.precision_score(has, said))
    assert min(np.hypot(r - expected[0], p - expected[1]) for r, p in found) < 1e-9


def test_scores_that_are_shares_have_no_error() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(200_000)
    groups = curves.calibration(*histograms(rng.random(200_000) < scores, scores))
    assert len(groups) == 10
    assert curves.calibration_error(groups) < 0.01
    sure = curves.calibration(*histograms(rng.random(200_000) < 0.5, scores))
    assert curves.calibration_error(sure) == pytest.approx(0.25, abs=0.01)


def test_a_label_that_no_row_has() -> None:
    assert curves.area(curves.roc([5] * BINS, [0] * BINS)) == 0
    assert curves.precision_recall([0] * BINS, [0] * BINS) == []
    assert curves.calibration([0] * BINS, [0] * BINS) == []

"""ROC, precision and recall, calibration: from how many rows have each score.

A histogram of n equal bins stands for the scores; curves go through its edges, so that they are
exact there.
"""

import itertools
from collections.abc import Sequence

Counts = Sequence[int]  # rows by score, the lowest first
Points = list[tuple[float, float]]
_GROUPS = 10  # bars of a calibration


def roc(without: Counts, having: Counts) -> Points:
    """(false positive rate, true positive rate) at each threshold, the highest first."""
    return [
        (alarms / (sum(without) or 1), hits / (sum(having) or 1))
        for alarms, hits in _said(without, having)
    ]


def precision_recall(without: Counts, having: Counts) -> Points:
    """(recall, precision) at each threshold at which anything is said, the highest first."""
    return [
        (hits / (sum(having) or 1), hits / (hits + alarms))
        for alarms, hits in _said(without, having)
        if hits + alarms
    ]


def area(points: Points) -> float:
    """Under a curve whose x rises, by trapezia."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))


def calibration(without: Counts, having: Counts) -> list[tuple[float, float, int]]:
    """(mean score, share that has the label, rows) of each tenth of the scores with rows in it."""
    bins = len(having)
    size = -(-bins // _GROUPS)
    found = []
    for begin in range(0, bins, size):
        group = range(begin, min(begin + size, bins))
        rows = sum(without[place] + having[place] for place in group)
        if rows:
            score = sum((p + 0.5) / bins * (without[p] + having[p]) for p in group) / rows
            found.append((score, sum(having[place] for place in group) / rows, rows))
    return found


def calibration_error(groups: Sequence[tuple[float, float, int]]) -> float:
    """Expected calibration error (Naeini et al. 2015): how far scores are from shares, by rows."""
    total = sum(rows for _, _, rows in groups) or 1
    return sum(abs(score - share) * rows for score, share, rows in groups) / total


def _said(without: Counts, having: Counts) -> list[tuple[int, int]]:
    """(false alarms, hits) where all scores from a bin on count as a yes, from none to all."""
    found = [(0, 0)]
    for alarms, hits in zip(reversed(without), reversed(having), strict=True):
        found.append((found[-1][0] + alarms, found[-1][1] + hits))
    return found

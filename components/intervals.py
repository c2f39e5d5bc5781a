"""How sure a measured share is."""

import math


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """The ends of the interval that holds a share's true value, of 95 % of samples.

    Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = share * (1 - share) / rows + z * z / (4 * rows * rows)
    half = z * math.sqrt(reach) / (1 + z * z / rows)
    return max(0.0, middle - half), min(1.0, middle + half)

"""Selection of a setting from an ordered grid: fixed-sequence testing, and conformal risk control.

A grid goes from the safest setting, the full model, whose loss is 0 on every sequence by definition, to the cheapest. Both
rules answer with an index, 0 where nothing but the full model can be promised.
"""

from __future__ import annotations

import numpy as np


def fixed_sequence(p_values: np.ndarray, delta: float) -> np.ndarray:
    """(...) the last certified setting: with probability at least 1 - delta none of the certified ones is too lossy.

    From setting 1 on, settings are tested at delta until one is not rejected; none after that is looked at.
    (Learn-then-Test, arXiv 2110.01052, fixed-sequence testing: to certify a lossy setting the first lossy one must be
    rejected, which happens with probability at most delta.)

    Args:
        p_values: (..., m); that of setting 0 is not looked at, for its loss is 0.
    """
    return np.logical_and.accumulate(p_values[..., 1:] <= delta, axis=-1).sum(axis=-1)


def conformal_bounds(losses: np.ndarray, most: float) -> np.ndarray:
    """What conformal risk control compares with epsilon: n / (n + 1) * mean monotone loss + most / (n + 1), (..., m).

    Losses are (..., n, m), and `most` is the greatest that there can be. The monotone loss of a sequence is its largest so
    far along the grid. (arXiv 2208.02814, equation 4.)
    """
    return (np.maximum.accumulate(losses, axis=-1).sum(axis=-2) + most) / (losses.shape[-2] + 1)


def conformal_setting(losses: np.ndarray, epsilon: float, most: float) -> np.ndarray:
    """(...) the last setting whose conformal bound is at most epsilon.

    Over calibration rows and one new sequence alike, the expected monotone loss of what is picked is at most epsilon, and so
    is that of the loss itself. It is an average: one unlucky calibration set may pick a setting that is far too lossy.
    """
    return fixed_sequence(conformal_bounds(losses, most), epsilon)

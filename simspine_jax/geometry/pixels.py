"""What lies inside a picture, by one rule for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def in_picture(pixels: np.ndarray, sizes: np.ndarray | Sequence[int]) -> NDArray[np.bool_]:
    """Where points are inside a picture: the middle of the first pixel is (0, 0), its corner (-0.5, -0.5).

    Args:
        pixels: [... 2] px; NaN is not inside.
        sizes: [... 2] width and height, px; where they are not known (NaN), nothing is outside.
    """
    sizes = np.asarray(sizes, np.float64)
    edge = np.where(np.isnan(sizes), np.inf, sizes) - 0.5
    low = np.where(np.isnan(sizes), -np.inf, -0.5)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.all((pixels > low) & (pixels < edge), axis=-1))

"""Connected parts of a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def largest_component(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The largest connected part of a mask; voxels that share a corner are connected, as in nnU-Net.

    Args:
        mask: uint8, 0 or 1, shape (I, J, K). An empty one comes back as it is; of equally large parts the one with
            the lowest index stays.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax()).astype(np.uint8)

"""Correction of the coil's shading."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def correct_bias(data: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Remove the coil's smooth shading with N4, fitted on a grid of a quarter of the resolution.

    Args:
        data: Intensities (I, J, K).

    Returns:
        Corrected intensities, float32, same shape.

    Source: Tustison et al. 2010, IEEE TMI 29(6):1310-1320, as implemented in ITK.
    """
    import SimpleITK as sitk  # noqa: N813 - the name that ITK's own manual uses

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, dtype=np.float32))
    body = sitk.OtsuThreshold(image, 0, 1, 200)
    shrink = [min(4, size) for size in image.GetSize()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50, 50, 50])
    corrector.Execute(sitk.Shrink(image, shrink), sitk.Shrink(body, shrink))
    field = sitk.Exp(corrector.GetLogBiasFieldAsImage(image))
    corrected: npt.NDArray[np.float32] = sitk.GetArrayFromImage(sitk.Divide(image, sitk.Cast(field, sitk.sitkFloat32)))
    return corrected.T

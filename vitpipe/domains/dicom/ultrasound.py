"""What an ultrasound image says of its scale: its regions, each with a scale of its own (PS3.3 C.8.5.5)."""

from __future__ import annotations

from typing import Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import children, number

_TWO_DIMENSIONAL: Final = 1
_CENTIMETRES: Final = 3
_MM_PER_CM: Final = 10.0
ONE_REGION: Final = "REGION_SPACING"
"""The spacing is that of the image's one region: what lies outside of the region has none."""
SEVERAL_REGIONS: Final = "SEVERAL_REGIONS"
"""No spacing holds for the image: its regions have scales of their own, or another one than centimetres."""


def region_spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, str | None]:
    """Give the spacing of an image with a single two-dimensional region in centimetres.

    Returns:
        Spacing between rows and between columns in mm, or None; and the note to make, None where there are no regions.
    """
    regions = list(children(dataset, "SequenceOfUltrasoundRegions"))
    if not regions:
        return None, None
    region = regions[0]
    units = [number(region, f"PhysicalUnits{axis}Direction") for axis in ("Y", "X")]
    steps = [number(region, f"PhysicalDelta{axis}") for axis in ("Y", "X")]
    flat = number(region, "RegionSpatialFormat") == _TWO_DIMENSIONAL
    if len(regions) > 1 or not flat or units != [_CENTIMETRES] * 2 or not all(steps):
        return None, SEVERAL_REGIONS
    # A step is negative where the axis runs against the pixels'.
    down, right = (abs(step) * _MM_PER_CM for step in steps if step is not None)
    return (down, right), ONE_REGION

"""From physical values to grey levels on a screen: for pictures alone, never for learning (PS3.3 C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue

from vitpipe.domains.dicom.fields import children, text, value_of
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.errors import UnreadableSource

_WHITE: Final = 255.0
_LINEAR, _EXACT, _SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"


@dataclass(frozen=True, slots=True)
class Presentation:
    """How a file wants its values shown."""

    centre: float
    width: float
    function: str
    """``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``."""
    table: NDArray[np.float64] | None
    """The VOI LUT, from 0 to 1; it replaces the window."""
    table_first: int
    """The value that the table's first entry stands for."""
    dark_high: bool
    """MONOCHROME1: the highest value is black."""
    mirror: float | None
    """Lowest and highest value together, where the values were inverted by the reader; None: they were not."""


def read_presentation(dataset: Dataset, described: PixelFormat, *, path: str, choice: int = 0) -> Presentation:
    """Read the window or VOI LUT of a file; without one the range that the stored bits allow is shown.

    Args:
        dataset: the header.
        described: its pixel format.
        path: for messages.
        choice: which of several windows or tables.

    Raises:
        UnreadableSource: ``MALFORMED_HEADER``: the window has no width, or the table is broken.
    """
    slope, intercept = described.rescale(0)
    ends = sorted(slope * end + intercept for end in described.stored_range)
    if described.lut_bits is not None:
        ends = [0.0, float((1 << described.lut_bits) - 1)]
    function = (text(dataset, "VOILUTFunction") or _LINEAR).upper()
    centre, width = _chosen(dataset, "WindowCenter", choice), _chosen(dataset, "WindowWidth", choice)
    if centre is None or width is None:
        # LINEAR_EXACT maps the lowest value to black and the highest to white.
        centre, width, function = (ends[0] + ends[1]) / 2, max(ends[1] - ends[0], 1.0), _EXACT
    smallest = 1.0 if function == _LINEAR else 0.0
    if width < smallest or (width == 0 and function != _LINEAR):
        raise UnreadableSource("MALFORMED_HEADER", "its display window has no width; choose a window", path)
    table, first = _table(dataset, described, path, choice)
    dark_high = described.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape") == "INVERSE"
    mirror = ends[0] + ends[1] if described.inverted else None
    return Presentation(centre, width, function, table, first, dark_high, mirror)


def display(values: NDArray[np.generic], presentation: Presentation) -> NDArray[np.uint8]:
    """Give the grey levels of values.

    Args:
        values: in physical units, as a raster reads them; any shape.
        presentation: of their file.

    Returns:
        0 (black) to 255 (white), of the same shape. Source: PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID),
        C.11.2.1.3.2 (LINEAR_EXACT), C.11.2.1.1 (VOI LUT); MONOCHROME1 is inverted after the window.
    """
    shown = values.astype(np.float64)
    if presentation.mirror is not None:
        shown = presentation.mirror - shown
    centre, width = presentation.centre, presentation.width
    if presentation.table is not None:
        places = np.clip(np.rint(shown) - presentation.table_first, 0, len(presentation.table) - 1)
        grey = presentation.table[places.astype(np.intp)]
    elif presentation.function == _SIGMOID:
        with np.errstate(over="ignore"):
            grey = 1 / (1 + np.exp(-4 * (shown - centre) / width))
    elif presentation.function == _EXACT:
        grey = np.clip((shown - centre) / width + 0.5, 0, 1)
    elif width == 1:
        # A window of one is a threshold.
        grey = (shown > centre - 0.5).astype(np.float64)
    else:
        grey = np.clip((shown - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if presentation.dark_high:
        grey = 1 - grey
    levels: NDArray[np.uint8] = np.rint(grey * _WHITE).astype(np.uint8)
    return levels


def _chosen(dataset: Dataset, keyword: str, choice: int) -> float | None:
    value = value_of(dataset, keyword)
    if isinstance(value, MultiValue | list):
        value = value[choice] if choice < len(value) else None
    try:
        found = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is not None and np.isfinite(found) else None


def _table(dataset: Dataset, described: PixelFormat, path: str, choice: int) -> tuple[NDArray[np.float64] | None, int]:
    items = list(children(dataset, "VOILUTSequence"))
    if choice >= len(items):
        return None, 0
    descriptor, data = value_of(items[choice], "LUTDescriptor"), value_of(items[choice], "LUTData")
    broken = UnreadableSource("MALFORMED_HEADER", "its VOI LUT is broken; choose a window", path)
    if not isinstance(descriptor, MultiValue | list) or len(descriptor) != 3 or not data:
        raise broken
    count, first, bits = (int(item) for item in descriptor)
    count = count or 1 << 16
    # Of a rescale to negative values the first value is signed, whatever its VR says.
    if first >= 1 << 15 and (described.signed or min(described.intercepts) < 0):
        first -= 1 << 16
    if isinstance(data, bytes):
        entries = np.frombuffer(data, np.uint8 if len(data) <= count + 1 else np.dtype("<u2"))
    else:
        entries = np.asarray(data)
    if len(entries) < count or not 8 <= bits <= 16:
        raise broken
    return entries[:count].astype(np.float64) / ((1 << bits) - 1), first

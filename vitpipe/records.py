"""The records that move through the rooms: frozen, checked at birth, no I/O.

Axes: ``frame, row, col`` are zero-based; ``x, y`` are CRS coordinates; a DICOM patient position is LPS in millimetres.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Attribute: TypeAlias = str | float | None

WHOLE_SOURCE = -1
"""In a label row: the label holds for every frame of the source."""


class Split(enum.StrEnum):
    """The four disjoint sets of groups; `calibration` serves temperature, thresholds and conformal sets alone."""

    TRAIN = "train"
    VAL = "val"
    CALIBRATION = "calibration"
    TEST = "test"


class Task(enum.StrEnum):
    """What a model says: a class of each tile, a class of each pixel, or a value of each pixel."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    REGRESSION = "regression"


class Level(enum.StrEnum):
    """What one row of a metric stands for: the unit at which predictions are pooled by their mean probability."""

    TILE = "tile"
    SOURCE = "source"
    GROUP = "group"


class Window(NamedTuple):
    """A pixel rectangle of one frame, or of some frames. It may reach past the edge: that part is not valid."""

    frame: int
    row: int
    col: int
    height: int
    width: int
    depth: int = 1
    """Frames that it covers, from `frame` on; a raster reads one."""


BOX_COLUMN = "box_mm"
"""Column of tables of tiles, see :func:`box_mm`; missing where the source has no place in a patient."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a source's pixels lie."""

    frames: int
    height: int
    width: int
    spacing_mm: tuple[float, float, float] | None = None
    """Between frames, between rows, between columns (row spacing first, as DICOM's PixelSpacing); None: not known. The
    first is 0 where frames have no regular step: a single frame, gaps, no positions; `affine` is None then."""
    affine: tuple[float, ...] | None = None
    """16 numbers, row-major 4x4: (col, row, frame, 1) to LPS millimetres. DICOM only."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """a, b, c, d, e, f of rasterio's Affine: (col, row) to CRS. Earth observation only."""
    crs: str | None = None
    """The CRS as ``EPSG:code`` where it has one, else as WKT."""
    gcps: tuple[tuple[float, float, float, float], ...] = ()
    """Ground control points (row, col, x, y) of a scene that has these and no transform."""
    gcp_crs: str | None = None
    """The CRS of their x and y."""

    def __post_init__(self) -> None:
        """Refuse an empty grid."""
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"a grid needs at least one pixel, got {self.frames}x{self.height}x{self.width}")

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        return {
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "spacing_mm": list(self.spacing_mm) if self.spacing_mm else None,
            "affine": list(self.affine) if self.affine else None,
            "transform": list(self.transform) if self.transform else None,
            "crs": self.crs,
            # Left out where there are none: grids from before there were any keep their digest.
            **({"gcps": [list(point) for point in self.gcps], "gcp_crs": self.gcp_crs} if self.gcps else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Grid:
        """Read what :meth:`to_json` wrote."""
        values = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        points: Any = values.pop("gcps", ())
        return cls(**values, gcps=tuple(tuple(point) for point in points))  # type: ignore[arg-type]


def box_mm(grid: Grid, window: Window) -> list[float] | None:
    """Give the box of a window in the patient: 12 numbers, LPS, millimetres.

    The first three are the outer corner of the first pixel (half a pixel before its centre, PS3.3 C.7.6.2.1.1); then
    come three edge vectors: along increasing rows, along increasing columns, along increasing frames. The other seven
    corners are sums of these; a tilted stack has a slanted box. What reaches past the edge of the grid belongs to it.

    Args:
        grid: the grid that the window counts in.
        window: the rectangle.

    Returns:
        None where the grid has no affine: a photograph, a scene, a stack without a regular step.
    """
    if grid.affine is None:
        return None
    columns = [grid.affine[axis::4][:3] for axis in range(4)]
    along_col, along_row, along_frame, first = columns
    origin = [
        at + right * (window.col - 0.5) + down * (window.row - 0.5) + through * (window.frame - 0.5)
        for at, right, down, through in zip(first, along_col, along_row, along_frame, strict=True)
    ]
    edges = ((along_row, window.height), (along_col, window.width), (along_frame, window.depth))
    return [float(value) for value in (*origin, *(step * count for axis, count in edges for step in axis))]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file as the index knows it: the cheap key (path, size, mtime), the content digest and its header."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    header: Mapping[str, Json]
    """What the domain's `index` found. No patient identifier in clear: only pseudonyms leave the reader."""


@dataclass(frozen=True, slots=True)
class Source:
    """One imaged thing that is read as a whole: a DICOM series (or one 2-D instance), a scene, a photograph."""

    source_id: str
    """16 hexadecimal characters from the content: a moved or touched file is the same source."""
    group_id: str
    """What must not straddle splits: a patient's keyed pseudonym, a block of ground, or the source itself."""
    domain: str
    uri: str
    """The file, or the folder that holds the files."""
    files: tuple[str, ...]
    """The files in frame order; one file may hold all frames."""
    grid: Grid
    channels: tuple[str, ...]
    units: str
    """Physical unit of the pixel values: ``HU``, ``reflectance``, ``dn``, ...; one for all channels."""
    dtype: str
    """numpy name of the dtype that a read gives, wide enough for every frame."""
    acquired_at: str | None = None
    """ISO 8601; for DICOM the year alone."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """The subgroup columns."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What a label table may name: key kind to values. As many values as frames: each names its frame. Identifying
    kinds hold pseudonyms, see `vitpipe.labels.table`."""
    bytes: int = 0
    """Size of the files."""
    notes: tuple[str, ...] = ()
    """Stable codes of what is odd but not wrong, such as ``NO_GEOMETRY``."""
    reader: Mapping[str, Json] = field(default_factory=dict)
    """What the domain's `open` needs beyond the files, such as the bands chosen."""
    geometry: Mapping[str, Json] = field(default_factory=dict)
    """What was measured of the places of frames; `worst` holds for a code how bad it is: a number to compare, a clause
    to show."""

    def __post_init__(self) -> None:
        """Refuse a source that no later room could name."""
        if not self.source_id or not self.group_id or not self.files or not self.channels:
            raise ValueError(f"a source needs source_id, group_id, files and channels: {self}")


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one frame of a source lies in the patient, LPS millimetres."""

    instance_uid: str | None
    """Pseudonym of the instance that holds the frame."""
    number: int
    """Of the frame within its instance."""
    frame_of_reference: str | None
    """Pseudonym."""
    position: tuple[float, ...] | None
    """Centre of the first pixel; None where the file says no place."""
    orientation: tuple[float, ...] | None
    """Cosines of a row's direction, then of a column's."""
    spacing_mm: tuple[float, ...] | None
    """Between rows, between columns."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file or source that is not used, and why. A row of the quarantine table."""

    uri: str
    code: str
    reason: str
    junk: bool = False
    """Not of this domain at all (a text file beside DICOM files): listed, but not counted in the share of rejects."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage did. Summaries of one stage add up."""

    stage: str
    done: int = 0
    skipped: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Code to count."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """Sentences for the user. Prefect and the report keep them: no path, since a file's name may be a patient's."""

    def __add__(self, other: StageSummary) -> StageSummary:
        """Merge two summaries of one stage."""
        if self.stage != other.stage:
            raise ValueError(f"summaries of two stages do not add up: {self.stage}, {other.stage}")
        return StageSummary(
            stage=self.stage,
            done=self.done + other.done,
            skipped=self.skipped + other.skipped,
            rejected=dict(sorted((Counter(self.rejected) + Counter(other.rejected)).items())),
            seconds=self.seconds + other.seconds,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form, for ``--json`` and for artifacts."""
        return dataclasses.asdict(self) | {"notes": list(self.notes), "rejected": dict(self.rejected)}


def count_codes(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Count rejections by code, sorted by code."""
    return dict(sorted(Counter(item.code for item in rejected).items()))


@dataclass(frozen=True, slots=True)
class Findings:
    """What a look at data or at a configuration found: sentences for a person, values for a machine."""

    lines: tuple[str, ...]
    values: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Give both."""
        return {"lines": list(self.lines), **self.values}

"""Which instance each frame of a source is, and where it lies in the patient: for labels and for results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from vitpipe.domains.dicom.fields import number, text
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.instance import Geometry, Vector, read_geometry
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.repaired import unrepaired
from vitpipe.domains.dicom.sources import arrange_frames
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Plane, Source


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a source. It holds identifiers in clear: it must not leave the process but into a DICOM object."""

    header: Dataset
    """Of its file, without pixels; one object for all frames of a file."""
    number: int
    """Within its file, from zero."""
    position: Vector | None
    orientation: Vector | None
    spacing_mm: Vector | None


def read_frames(source: Source) -> tuple[Frame, ...]:
    """Read the headers of a source, and give its frames in its order.

    The frames of a repaired source are made of two of the files: each is given as the nearer one, at the place where
    the repair has put it.

    Raises:
        UnreadableSource: a file is gone or broken, or holds another number of frames than the source says.
    """
    if is_repaired(source):
        return _of_repair(source)
    if len(source.files) == 1:
        return _of_one_file(source)
    return tuple(_of_file(path) for path in source.files)


def is_repaired(source: Source) -> bool:
    """Tell whether the frames of a source are made of those of its files, and lie elsewhere."""
    return "repair" in source.reader


def planes_of(source: Source, pseudonym: Pseudonymiser) -> tuple[Plane, ...]:
    """Give the plane of every frame, its identifiers as pseudonyms; raises as :func:`read_frames`.

    Where the source has an affine, which meets every position within 0.01 mm, one header is read and not all.
    """

    def named(kind: str, header: Dataset, keyword: str) -> str | None:
        value = text(header, keyword)
        return pseudonym(kind, value) if value else None

    grid, uids = source.grid, source.keys.get("instance_uid", ())
    if grid.affine is not None and grid.spacing_mm is not None and len(uids) == len(source.files) == grid.frames > 1:
        reference = named("frame_of_reference", _header(source.files[0]), "FrameOfReferenceUID")
        return _on_affine(grid.affine, grid.spacing_mm, uids, reference)
    return tuple(
        Plane(
            instance_uid=named("instance_uid", frame.header, "SOPInstanceUID"),
            number=frame.number,
            frame_of_reference=named("frame_of_reference", frame.header, "FrameOfReferenceUID"),
            position=frame.position,
            orientation=frame.orientation,
            spacing_mm=frame.spacing_mm,
        )
        for frame in read_frames(source)
    )


def _on_affine(
    affine: Vector, spacing_mm: Vector, instance_uids: Sequence[str], frame_of_reference: str | None
) -> tuple[Plane, ...]:
    matrix = np.asarray(affine).reshape(4, 4)
    orientation = tuple((matrix[:3, axis] / np.linalg.norm(matrix[:3, axis])).tolist() for axis in (0, 1))
    return tuple(
        Plane(
            instance_uid=uid,
            number=0,
            frame_of_reference=frame_of_reference,
            position=tuple((matrix[:3, 3] + frame * matrix[:3, 2]).tolist()),
            orientation=(*orientation[0], *orientation[1]),
            spacing_mm=spacing_mm[1:],
        )
        for frame, uid in enumerate(instance_uids)
    )


def _of_one_file(source: Source) -> tuple[Frame, ...]:
    path, frames = source.files[0], source.grid.frames
    chosen: Any = source.reader.get("frames", ())
    header = _header(path)
    stated = int(number(header, "NumberOfFrames") or 1)
    if stated <= max(chosen) if chosen else stated != frames:
        raise UnreadableSource("CHANGED", f"it held {frames} frame(s), now {stated}; ingest again", path)
    geometry = read_geometry(header, stated)
    order = tuple(chosen) or arrange_frames(geometry, stated).order
    return tuple(_frame(header, geometry, index, stated) for index in order)


def _of_repair(source: Source) -> tuple[Frame, ...]:
    found = read_frames(unrepaired(source))
    plan: Any = source.reader["repair"]
    assert source.grid.affine is not None
    assert source.grid.spacing_mm is not None
    affine = np.asarray(source.grid.affine).reshape(4, 4)
    _, between_rows, between_cols = source.grid.spacing_mm
    orientation = (*(affine[:3, 0] / between_cols).tolist(), *(affine[:3, 1] / between_rows).tolist())
    return tuple(
        dataclasses.replace(
            found[place + round(weight)],
            position=tuple((affine[:3, 3] + frame * affine[:3, 2]).tolist()),
            orientation=orientation,
            spacing_mm=(between_rows, between_cols),
        )
        for frame, (place, weight) in enumerate(plan["samples"])
    )


def _of_file(path: str) -> Frame:
    header = _header(path)
    return _frame(header, read_geometry(header, 1), 0, 1)


def _header(path: str) -> Dataset:
    with quiet():
        return read_file(Path(path)).dataset


def _frame(header: Dataset, geometry: Geometry, index: int, frames: int) -> Frame:
    positions, orientations = geometry.positions, geometry.orientations
    return Frame(
        header=header,
        number=index,
        position=positions[index] if len(positions) == frames else None,
        orientation=orientations[index if len(orientations) == frames else 0] if orientations else None,
        spacing_mm=geometry.spacings[index] if geometry.spacings else geometry.spacing_mm,
    )

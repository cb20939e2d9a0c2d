"""The DICOM domain: files of any name -> series and instances -> frames in physical units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vitpipe.config import DicomSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom.burnedin.door import refuse_text_in_pixels
from vitpipe.domains.dicom.directory import read_directory
from vitpipe.domains.dicom.files import JUNK_CODES, read_file
from vitpipe.domains.dicom.indexing import HeaderIndex
from vitpipe.domains.dicom.instance import read_instance
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.raster import DicomRaster
from vitpipe.domains.dicom.repaired import RepairedRaster, unrepaired
from vitpipe.domains.dicom.scan import InDoubt
from vitpipe.domains.dicom.sources import assemble
from vitpipe.errors import UnreadableSource
from vitpipe.records import FileRecord, Json, Rejected, Source


class Dicom:
    """Reads trees of DICOM files; see :class:`vitpipe.domains.base.Domain`.

    Codes of rejected files: ``ZERO_BYTES NOT_DICOM DICOMDIR MALFORMED_HEADER UNREADABLE_FILE NO_PIXELS PIXELS_MISSING
    NOT_AN_IMAGE LOCALIZER TRUNCATED FRAME_COUNT UNSUPPORTED UNDECODABLE OTHER_MODALITY CONFLICTING_SOP DUPLICATE
    OUTSIDE_RUN``; ``MISSING_FILE`` where a DICOMDIR names a file that is not there; at a read ``CHANGED``; with
    ``burned_in: reject`` those of :mod:`vitpipe.domains.dicom.burnedin.door`.

    Notes of sources: ``NO_GEOMETRY SINGLE_FRAME GAP IRREGULAR DUPLICATE_POSITION TILT TEMPORAL_STACK MIXED_KIND
    MIXED_SHAPE MIXED_ORIENTATION MIXED_SPACING MIXED_STACK LOCALIZER REPAIRED NOT_REPAIRED NO_SPACING
    NO_PATIENT_ID NO_FOR_UID DETECTOR_SPACING CALIBRATED_SPACING BAD_ORIENTATION BAD_SPACING BURNED_IN_ANNOTATION
    LOSSY``. What is measured of them stands in `Source.geometry`, see
    :class:`vitpipe.domains.dicom.report.GeometryReport`.
    """

    name = "dicom"

    def __init__(self) -> None:
        self._headers: HeaderIndex | None = None

    def listed_in(self, path: Path) -> list[Path] | None:
        """Give the files that a DICOMDIR names; None where the file is none.

        Raises:
            DataError: the DICOMDIR is damaged, or names files outside of its folder.
        """
        return read_directory(path)

    def index(self, path: Path, context: ScanContext) -> Mapping[str, Json] | Rejected:
        """Read one file's header; identifiers leave as pseudonyms.

        Raises:
            TransientError: the store does not answer.
        """
        headers = self._headers
        if headers is None or headers.pseudonym != context.pseudonym:
            headers = self._headers = HeaderIndex(context.pseudonym)
        try:
            try:
                record: Mapping[str, Json] = headers.index(path)
            except InDoubt:
                with quiet():
                    record = read_instance(read_file(path), context.pseudonym).to_json()
            if isinstance(context.recipe, DicomSource) and context.recipe.burned_in == "reject":
                refuse_text_in_pixels(read_file(path))
            return record
        except UnreadableSource as error:
            return Rejected(str(path), error.code, error.reason, junk=error.code in JUNK_CODES)
        except OSError as error:
            # pydicom raises it without a number where a sequence ends within an item; its text quotes offsets alone.
            if error.errno is not None:
                raise
            return Rejected(str(path), "MALFORMED_HEADER", "a sequence of the header is cut; export the file again")

    def assemble(self, records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
        """Make sources of indexed files: stacks in the order of their positions, and single instances."""
        return assemble(records, context)

    @contextlib.contextmanager
    def open(self, source: Source) -> Iterator[DicomRaster | RepairedRaster]:
        """Open a source; its files are read as their frames are asked for.

        Raises:
            UnreadableSource: a file is gone, changed or broken.
        """
        for path in source.files:
            if not Path(path).is_file():
                raise UnreadableSource("UNREADABLE_FILE", "the file is gone; ingest again", path)
        if "repair" in source.reader:
            yield RepairedRaster(DicomRaster(unrepaired(source)), source)
        else:
            yield DicomRaster(source)

"""De-identify one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

from vitpipe import __version__
from vitpipe.atomic import write_file
from vitpipe.digest import digest_file
from vitpipe.domains.dicom.deidentify.identity import read_patient
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, PixelJudge, Rectangle, Reject
from vitpipe.domains.dicom.deidentify.objects import check_object
from vitpipe.domains.dicom.deidentify.options import Option, state_method
from vitpipe.domains.dicom.deidentify.pixels import FilePixels, has_overlay_in_pixels, pixel_element, replace_pixels
from vitpipe.domains.dicom.deidentify.scrub import Scrubber, Subject
from vitpipe.domains.dicom.deidentify.traces import traces_of
from vitpipe.domains.dicom.fields import text
from vitpipe.domains.dicom.files import PARSE_ERRORS, DicomFile, read_file
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser

_UIDS: Final = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# What a broken file may raise only when it is written again: a value that no VR holds, a text in no character set.
_WRITE_ERRORS: Final = (*PARSE_ERRORS, UnicodeError, OverflowError)


_UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Examined:
    """One file whose header was read."""

    item: DicomFile
    output: str
    """Where its result goes, below the target folder."""


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written."""

    output: str
    """Path below the target folder: patient, study, series and instance, each by its pseudonym."""
    digest: str
    """Of the bytes that were written."""
    masked: bool


class Deidentifier:
    """De-identifies files one by one; the result depends on the file, the options and the key alone.

    Args:
        options: beyond the basic profile.
        pseudonym: the key.
        judge: decides on the pixels.
    """

    def __init__(self, options: frozenset[Option], pseudonym: Pseudonymiser, judge: PixelJudge) -> None:
        self._options = options
        self._pseudonym = pseudonym
        self._judge = judge
        self._scrubber = Scrubber(options, pseudonym)

    def examine(self, path: Path) -> Examined:
        """Read a file's header and find where its result goes.

        Raises:
            UnreadableSource: it is no DICOM file, lacks a UID, or is an object that rules cannot make safe.
            TransientError: the store does not answer.
        """
        with quiet():
            item = read_file(path)
            output = self._place(item)
            check_object(item, text(item.dataset, "SOPClassUID") or "")
        return Examined(item, output)

    def write(self, path: Path, target: Path) -> Written:
        """De-identify one file; see :meth:`examine` and :meth:`write_examined`."""
        return self.write_examined(self.examine(path), target)

    def write_examined(self, examined: Examined, target: Path) -> Written:
        """De-identify a file whose header was read. It can be done once: the header in memory is changed.

        Args:
            examined: the file; it is only read.
            target: folder below which the result is written, whole or not at all.

        Raises:
            UnreadableSource: with the code of why it is not written. Its text quotes no value of the file.
            WorkspaceError: the target cannot be written.
        """
        path = examined.item.path
        with quiet():
            try:
                dataset, masked = self._changed(examined.item)
            except PARSE_ERRORS as error:
                raise _malformed(path, error) from None
            with write_file(target / examined.output) as partial:
                try:
                    dcmwrite(partial, dataset, enforce_file_format=True)
                except _WRITE_ERRORS as error:
                    raise _malformed(path, error) from None
                digest = digest_file(partial)
        return Written(examined.output, digest, masked)

    def _place(self, item: DicomFile) -> str:
        uids = {keyword: text(item.dataset, keyword) for keyword in _UIDS}
        missing = [keyword for keyword, value in uids.items() if not value]
        if missing:
            raise UnreadableSource(
                "NO_UID", f"{' and '.join(missing)} are absent; without them no file can be named", str(item.path)
            )
        names = [
            self._pseudonym(kind, uids[keyword] or "")
            for kind, keyword in (("study_uid", _UIDS[2]), ("series_uid", _UIDS[1]), ("instance_uid", _UIDS[0]))
        ]
        return "/".join([read_patient(item.dataset, self._pseudonym).alias, *names]) + ".dcm"

    def _changed(self, item: DicomFile) -> tuple[FileDataset, bool]:
        rectangles: tuple[Rectangle, ...] = ()
        cleaned = False
        pixels = FilePixels(item) if item.pixels is not None else None
        if pixels is not None:
            verdict = self._judge.judge(item.dataset, pixels)
            if isinstance(verdict, Reject):
                raise UnreadableSource(verdict.code, verdict.reason, str(item.path))
            rectangles = verdict.rectangles if isinstance(verdict, Mask) else ()
            cleaned = isinstance(verdict, Mask) or (isinstance(verdict, Keep) and verdict.inspected)
        dataset = _whole(item, pixels)
        sop_class = text(dataset, "SOPClassUID") or ""
        # Before names and identifiers are gone.
        subject = Subject(read_patient(dataset, self._pseudonym), sop_class, traces_of(dataset))
        implicit, little = dataset.original_encoding
        dataset.file_meta = _new_meta(item)
        dataset.preamble = b"\0" * 128
        if pixels is not None and (rectangles or has_overlay_in_pixels(dataset)):
            replace_pixels(dataset, pixels, rectangles)
            implicit, little = False, True
        self._scrubber.scrub(dataset, subject)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if "PatientID" not in dataset:
            dataset.PatientID = subject.patient.alias
        if cleaned:
            dataset.BurnedInAnnotation = "NO"
        state_method(dataset, self._options, pixels_cleaned=cleaned)
        dataset.set_original_encoding(implicit, little)
        return dataset, bool(rectangles)


def _new_meta(item: DicomFile) -> FileMetaDataset:
    """Make the file meta group anew: who sent the file, and private information, do not go on."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = item.transfer_syntax
    meta.ImplementationVersionName = f"VITPIPE {__version__}"[:16]
    return meta


def _whole(item: DicomFile, pixels: FilePixels | None) -> FileDataset:
    """Give the header with its pixels, as they lie in the file. What follows them (signatures, padding) does not go on.

    Raises:
        UnreadableSource: ``TRUNCATED``: pydicom takes a value that the file's end cuts off as it is.
    """
    dataset: Any = item.dataset
    for tag in dataset.keys():  # noqa: SIM118
        raw: Any = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.value is not None and len(raw.value) < raw.length < _UNDEFINED:
            raise UnreadableSource(
                "TRUNCATED", "the file ends within its data set; copy the file again", str(item.path)
            )
    if item.pixels is not None and pixels is not None:
        dataset.add(pixel_element(item.path, item.pixels, pixels.native_bytes))
    whole: FileDataset = dataset
    return whole


def _malformed(path: Path, error: Exception) -> UnreadableSource:
    return UnreadableSource(
        "MALFORMED_HEADER",
        f"the data set does not follow the standard ({type(error).__name__}); export the file again",
        str(path),
    )

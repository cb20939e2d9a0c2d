"""The instances that a result speaks of: their headers, with every value that the standard asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import number
from vitpipe.domains.dicom.frames import Frame, is_repaired, read_frames
from vitpipe.errors import UnreadableSource
from vitpipe.records import Source

NO_RESULT: Final = "NO_DICOM_RESULT"
"""Code of a source that was predicted on, but of which no DICOM result could be written."""

UTF8: Final = "ISO_IR 192"

_NEEDED: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_TYPE_2: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_SEXES: Final = ("M", "F", "O", "")


@dataclass(frozen=True, slots=True)
class Originals:
    """A source's frames, and the headers of its files."""

    frames: tuple[Frame, ...]
    headers: tuple[Dataset, ...]
    """One a file, in the order of the source, without pixels; safe to change."""

    @property
    def instance_uids(self) -> tuple[str, ...]:
        """In clear: for the objects alone."""
        return tuple(str(header.SOPInstanceUID) for header in self.headers)

    def reference(self, frame: int) -> tuple[str, str, list[int] | None]:
        """Give class, instance and frame numbers (from one; None where the instance has one frame) of a frame."""
        found = self.frames[frame]
        several = (number(found.header, "NumberOfFrames") or 1) > 1
        return (
            str(found.header.SOPClassUID),
            str(found.header.SOPInstanceUID),
            [found.number + 1] if several else None,
        )


def read_originals(source: Source, texts: tuple[str, ...]) -> Originals:
    """Read the headers of a source for a result that holds `texts`.

    The character set stays that of the source where it can write the texts; else all become UTF-8.

    Raises:
        UnreadableSource: a file cannot be read any more, or (``NO_DICOM_RESULT``) it has no UID to refer to.
    """
    if is_repaired(source):
        raise UnreadableSource(
            NO_RESULT,
            "its frames were repaired, so its tiles lie on no frame of the files; train and predict with `geometry: "
            "strict` to file results, or use the tables",
            source.uri,
        )
    frames = read_frames(source)
    originals = list({id(frame.header): frame.header for frame in frames}.values())
    for path, header in zip(source.files, originals, strict=True):
        for keyword in _NEEDED:
            if not header.get(keyword):
                reason = f"the file has no {keyword}, so no result can refer to it; give the file its identifiers"
                raise UnreadableSource(NO_RESULT, reason, path)
    utf8 = not _writable(originals[0], texts)
    return Originals(frames, tuple(_whole(header, utf8=utf8) for header in originals))


def _writable(header: Dataset, texts: tuple[str, ...]) -> bool:
    if all(text.isascii() for text in texts):
        return True
    stated = header.get("SpecificCharacterSet")
    return str(stated) == UTF8


def _whole(header: Dataset, *, utf8: bool) -> Dataset:
    whole = Dataset()
    whole.update({element.tag: element for element in header})
    if utf8:
        whole.decode()
        whole.SpecificCharacterSet = UTF8
    for keyword in _TYPE_2:
        if keyword not in whole:
            setattr(whole, keyword, "")
    for element in list(whole):
        if element.VR == "SQ" and element.keyword.endswith("CodeSequence"):
            # Copied as they are, empty codes of a scanner would make the result wrong.
            del whole[element.tag]
            if codes := [code for item in element.value if (code := _sound_code(item)) is not None]:
                setattr(whole, element.keyword, codes)
    if whole.PatientSex not in _SEXES:
        # No defined term (PS3.3 C.7.1.1): a result with it would be refused.
        whole.PatientSex = ""
    return whole


def _sound_code(item: Dataset) -> Dataset | None:
    """Give a code without an empty version; None where it lacks what every code has (PS3.3 table 8.8-1)."""
    values = any(item.get(keyword) for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    if not (values and item.get("CodeMeaning") and (item.get("CodingSchemeDesignator") or item.get("URNCodeValue"))):
        return None
    sound = Dataset()
    sound.update({element.tag: element for element in item})
    if "CodingSchemeVersion" in sound and not sound.CodingSchemeVersion:
        del sound.CodingSchemeVersion
    return sound

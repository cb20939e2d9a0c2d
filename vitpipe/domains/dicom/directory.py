"""Read a DICOMDIR: the files that it names, all of them below its own folder (PS3.3 F.3, PS3.10 8)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.uid import MediaStorageDirectoryStorage

from vitpipe.domains.dicom.fields import value_of
from vitpipe.domains.dicom.files import PARSE_ERRORS, BoundedStream
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import DataError

_PREFIX_ENDS: Final = 132
_UNUSED: Final = 0


def read_directory(path: Path) -> list[Path] | None:
    """Give the files that a DICOMDIR names, in its order, whether they are there or not.

    Args:
        path: any file.

    Returns:
        None where it is no DICOMDIR.

    Raises:
        DataError: its records cannot be read, or one of them leads out of its folder.
    """
    try:
        with quiet(), BoundedStream(io.FileIO(path)) as stream:
            if stream.read(_PREFIX_ENDS)[128:] != b"DICM":
                return None
            stream.seek(0)
            dataset = dcmread(stream, stop_before_pixels=True)
            if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) != MediaStorageDirectoryStorage:
                return None
            return list(dict.fromkeys(_files(path, dataset)))
    except PARSE_ERRORS as error:
        if path.name.upper() != "DICOMDIR":
            # What is wrong with a file that is data is said by the index.
            return None
        raise _damaged(path, type(error).__name__) from None
    except OSError as error:
        # pydicom raises it too, without a number, where a sequence ends before its stated end.
        if error.errno is None:
            raise _damaged(path, "an item is cut") from None
        raise DataError(f"{path} cannot be read ({os.strerror(error.errno)}); check `source.path`") from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"the records of {path} cannot be read ({what}); point `source.path` at the folder instead")


def _files(path: Path, dataset: Dataset) -> Iterator[Path]:
    folders: dict[Path, dict[str, str]] = {}
    records = cast("DataElement | RawDataElement | None", dataset.get_item("DirectoryRecordSequence"))
    if records is None:
        raise _damaged(path, "it has none")
    if isinstance(records, RawDataElement) and len(records.value or b"") < records.length:
        raise _damaged(path, "they are cut")
    # No lenient reader here: a record that is passed over would be data that nobody misses.
    for record in dataset["DirectoryRecordSequence"].value:
        value = record.get("ReferencedFileID")
        # Records of patients, studies and series name no file.
        components = [] if not value else [value] if isinstance(value, str) else [str(item) for item in value]
        if not components or value_of(record, "RecordInUseFlag") == _UNUSED:
            continue
        if any(name.strip() in ("", ".", "..") or "/" in name or "\0" in name for name in components):
            raise DataError(
                f"{path} names a file outside of its folder; it is damaged or made to do harm: point `source.path` at "
                "the folder instead"
            )
        yield _on_disk(path.parent, [name.strip() for name in components], folders)


def _on_disk(folder: Path, components: list[str], folders: dict[Path, dict[str, str]]) -> Path:
    """Find a file by its name in capitals: many systems show the names of a medium in small letters."""
    for component in components:
        name = component
        if not (folder / name).exists():
            if folder not in folders:
                there = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
                folders[folder] = {item.upper(): item for item in there}
            name = folders[folder].get(name.upper(), name)
        folder = folder / name
    return folder

"""Real files: each of the corpus decodes to the bit or has a code; a real series lies in the order of its positions."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import context, read, scan

from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource
from vitpipe.records import FileRecord, Rejected, Source

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout"),
]

# What the corpus' decoders cannot read and we do: looked at, or equal to another encoding of the same pixels.
BEYOND = {
    "pylibjpeg-data__JPEG-lossy.dcm",
    "pylibjpeg-data__RG2_JPLY.dcm",
    "pydicom-data__OT-PAL-8-face.dcm",
    "pydicom-data__emri_small_jpeg_2k_lossless_too_short.dcm",
    "pydicom-data__liver_deflate.dcm",
}


def corpus() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((DATA / "dicom_edge" / "manifest.json").read_text("utf-8"))
    return listed


def digests(values: np.ndarray) -> set[str]:
    """The corpus keeps the digest of the bytes in the file's order: also big endian."""
    orders = (values, values.astype(values.dtype.newbyteorder(">")))
    return {hashlib.sha256(np.ascontiguousarray(item).tobytes()).hexdigest()[:24] for item in orders}


def test_every_file_of_the_corpus_decodes_alike_or_has_a_code() -> None:
    equal, coded, beyond, wrong = 0, 0, set(), []
    for row in corpus():
        known = {item["sha256"] for item in row["decode"].values() if isinstance(item, dict)}
        name = Path(row["file"]).name
        try:
            found = digests(stored_values(DATA / "dicom_edge" / row["file"]))
        except UnreadableSource as error:
            coded += 1
            if known:
                wrong.append((name, error.code))
            continue
        if not known:
            beyond.add(name)
        elif found & known:
            equal += 1
        else:
            wrong.append((name, "differs"))
    assert wrong == []
    assert (equal, coded, beyond) == (93, 53, BEYOND)


def test_a_missing_delimiter_loses_no_pixel() -> None:
    files = DATA / "dicom_edge" / "files"
    cut = stored_values(files / "pydicom-data__emri_small_jpeg_2k_lossless_too_short.dcm")
    np.testing.assert_array_equal(cut, stored_values(files / "pydicom-data__emri_small_RLE.dcm"))


def test_deflated_frames_are_those_of_another_encoding() -> None:
    files = DATA / "dicom_edge" / "files"
    inflated = stored_values(files / "pydicom-data__liver_deflate.dcm")
    np.testing.assert_array_equal(inflated, stored_values(files / "pydicom-data__liver_expb.dcm"))


def test_every_file_of_the_corpus_alone_is_read_or_rejected(tmp_path: Path) -> None:
    domain, where = Dicom(), context(DATA)
    read_frames = planned = 0
    for path in sorted((DATA / "dicom_edge" / "files").iterdir()):
        header = domain.index(path, where)
        if isinstance(header, Rejected):
            assert header.code.isupper()
            assert header.reason
            continue
        (source,) = domain.assemble([FileRecord(str(path), path.stat().st_size, 0, "0" * 32, header)], where)
        assert isinstance(source, Source)
        by_header = dataclasses.replace(
            source, reader={name: entry for name, entry in source.reader.items() if name != "pixels"}
        )
        planned += by_header != source
        for frame in range(min(source.grid.frames, 3)):
            pixels, valid = read(source, frame)
            for ours, theirs in zip((pixels, valid), read(by_header, frame), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            assert pixels.dtype == np.dtype(source.dtype)
            assert pixels.shape == (len(source.channels), source.grid.height, source.grid.width)
            assert not pixels[:, ~valid].any()
            read_frames += 1
    assert read_frames > 80
    assert planned > 50


def test_the_whole_corpus_in_one_folder_ends_in_sources_and_codes() -> None:
    sources, found = scan(DATA / "dicom_edge" / "files")
    files = len(list((DATA / "dicom_edge" / "files").iterdir()))
    assert sum(len(source.files) for source in sources) + len(found) == files


def test_a_shuffled_series_lies_in_the_order_of_its_positions() -> None:
    root = DATA / "mr_series3d"
    with (root / "slices.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    (source,) = scan(root)[0]
    heights = [float(rows[path]["position"].split("|")[2]) for path in source.keys["path"]]
    assert len(heights) == 20
    assert heights == sorted(heights)
    # Its steps are 6.9 and 7.0 mm, so no affine meets every position.
    assert source.notes == ("IRREGULAR",)
    assert source.grid.spacing_mm == (0.0, 0.859375, 0.859375)


def test_the_ct_files_are_their_patients() -> None:
    root = DATA / "ct_contrast"
    with (root / "labels.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    sources, found = scan(root)
    where = context(root)
    assert sorted(item.code for item in found) == ["DUPLICATE"] * 2 + ["NOT_DICOM"] * 2
    assert len(sources) == 56
    for source in sources:
        (path,) = source.keys["path"]
        row = rows[path]
        assert source.group_id == where.pseudonym("patient", row["patient_id"])
        assert source.keys["series_uid"] == (where.pseudonym("series_uid", row["series_uid"]),)
        assert source.attributes["sex"] == row["sex"]
        assert source.attributes["age_years"] == float(row["age"])
        assert source.units == "HU"
    pixels, valid = read(sources[0])
    assert pixels.min() >= -2048
    assert valid.any()

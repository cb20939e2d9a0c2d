"""Headers and pixels that another reader would take for something else: each is refused by a code, or read right."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import COLS, ROWS, context, enhanced, instance, read, save, scan, stored
from header_cases import EXPLICIT, IMPLICIT, Element, element, even, part10
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from vitpipe.config import PipelineConfig
from vitpipe.domains.dicom import Dicom, files, indexing, pixelformat, pixels, support
from vitpipe.domains.dicom.codecs import decode_runs
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.instance import read_instance
from vitpipe.domains.dicom.pixelformat import read_format
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import UnreadableSource
from vitpipe.fileindex import index_files, merge_index, plan_batches
from vitpipe.records import Rejected, Source, Window
from vitpipe.workspace import Workspace

SLOPE, INTERCEPT, HIGH_BIT, AGE = 0x00281053, 0x00281052, 0x00280102, 0x00101010
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
LUT, SHARED, PER_FRAME = 0x00283000, 0x52009229, 0x52009230


def header(*others: Element, gone: tuple[int, ...] = ()) -> list[Element]:
    """The elements of a small CT slice of 12 stored bits, changed by others."""
    shorts = {0x00280002: 1, 0x00280010: ROWS, 0x00280011: COLS, 0x00280100: 16, 0x00280101: 12, HIGH_BIT: 11}
    known: dict[int, Element] = {tag: (tag, b"US", struct.pack("<H", value)) for tag, value in shorts.items()}
    known[0x00280103] = (0x00280103, b"US", b"\0\0")
    for tag, vr, value in (
        (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x00080018, b"UI", even(b"1.2.3.777.4.1", b"\0")),
        (0x00080060, b"CS", b"CT"),
        (0x00280004, b"CS", even(b"MONOCHROME2")),
        (INTERCEPT, b"DS", b"-1024 "),
        (SLOPE, b"DS", b"1 "),
    ):
        known[tag] = (tag, vr, value)
    known |= {item[0]: item for item in others}
    return [known[tag] for tag in sorted(known) if tag not in gone]


def place(folder: Path, *others: Element, gone: tuple[int, ...] = (), syntax: bytes = EXPLICIT) -> Path:
    path = folder / "file"
    path.write_bytes(part10(header(*others, gone=gone), syntax=syntax, pixels=stored(1).tobytes()))
    return path


def code_of(path: Path) -> str:
    """The code that indexing gives; the very same where pydicom alone reads the file. Empty: it is read."""
    found = Dicom().index(path, context(path.parent))
    assert isinstance(found, Rejected) == bool(by_pydicom(path))
    if not isinstance(found, Rejected):
        return ""
    assert by_pydicom(path) in (found.code, "OSError")
    return found.code


def by_pydicom(path: Path) -> str:
    try:
        with quiet():
            read_instance(read_file(path), context(path.parent).pseudonym)
    except UnreadableSource as error:
        return error.code
    except OSError as error:
        # It has a number where the store is to blame.
        return "OSError" if error.errno is None else f"error {error.errno}"
    return ""


def only(root: Path) -> Source:
    sources, found = scan(root)
    assert not found
    (source,) = sources
    return source


def decimal(tag: int, value: bytes) -> Element:
    return tag, b"DS", even(value)


# ------------------------------------------------------------------------------------------------------------- rescale


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
@pytest.mark.parametrize("tag", [SLOPE, INTERCEPT], ids=["slope", "intercept"])
@pytest.mark.parametrize("value", [b"1,5", b"abc", b"1\\2", b"\\", b"nan", b"1e999", b"--1"])
def test_a_rescale_that_is_no_number_is_no_slope_of_one(tmp_path: Path, value: bytes, tag: int, syntax: bytes) -> None:
    assert code_of(place(tmp_path, decimal(tag, value), syntax=syntax)) == "MALFORMED_HEADER"


@pytest.mark.parametrize(("vr", "value"), [(b"DS", b"abc "), (b"FD", b"1\0\0\0")], ids=["text", "too short"])
def test_both_broken_are_not_none(tmp_path: Path, vr: bytes, value: bytes) -> None:
    both = ((SLOPE, vr, value), (INTERCEPT, vr, value))
    assert code_of(place(tmp_path, *both)) == "MALFORMED_HEADER"


@pytest.mark.parametrize("value", [b"0", b"0.0", b"-0", b"0e3"])
def test_a_slope_of_zero_is_refused(tmp_path: Path, value: bytes) -> None:
    assert code_of(place(tmp_path, decimal(SLOPE, value))) == "MALFORMED_HEADER"


@pytest.mark.parametrize("tag", [SLOPE, INTERCEPT], ids=["slope", "intercept"])
def test_half_a_rescale_is_refused(tmp_path: Path, tag: int) -> None:
    assert code_of(place(tmp_path, gone=(tag,))) == "MALFORMED_HEADER"
    assert code_of(place(tmp_path, decimal(tag, b""))) == "MALFORMED_HEADER"


@pytest.mark.parametrize("empty", [False, True])
def test_no_rescale_at_all_is_none(tmp_path: Path, empty: bool) -> None:
    both = (SLOPE, INTERCEPT)
    path = place(tmp_path, *(decimal(tag, b"") for tag in both)) if empty else place(tmp_path, gone=both)
    assert code_of(path) == ""
    described = read_format(read_file(path))
    assert (described.slopes, described.intercepts, described.units) == ((1.0,), (0.0,), "stored")


def lose(group: Dataset) -> None:
    del group.PixelValueTransformationSequence


def put(keyword: str, value: float | None) -> Callable[[Dataset], None]:
    def change(group: Dataset) -> None:
        setattr(group.PixelValueTransformationSequence[0], keyword, value)

    return change


@pytest.mark.parametrize(
    "change",
    [lose, put("RescaleSlope", 0), put("RescaleSlope", None), put("RescaleIntercept", None)],
    ids=["missing", "zero", "no slope", "no intercept"],
)
@pytest.mark.parametrize("frame", [0, 2])
def test_one_frame_without_its_rescale_spoils_the_file(
    tmp_path: Path, change: Callable[[Dataset], None], frame: int
) -> None:
    dataset = enhanced([0, 1, 2])
    assert code_of(save(dataset, tmp_path / "file")) == ""
    change(dataset.PerFrameFunctionalGroupsSequence[frame])
    assert code_of(save(dataset, tmp_path / "file")) == "MALFORMED_HEADER"


@pytest.mark.parametrize("tag", [SHARED, PER_FRAME], ids=["shared", "per frame"])
@pytest.mark.parametrize("value", [b"1,5 ", b"abc ", b"1\\2 ", b"0 "])
def test_a_broken_rescale_of_a_functional_group_is_refused(tmp_path: Path, value: bytes, tag: int) -> None:
    numbers = element(INTERCEPT, b"DS", b"-1024 ") + element(SLOPE, b"DS", value)
    transform = element(0x00289145, b"SQ", item(numbers))
    both = (SLOPE, INTERCEPT)
    assert code_of(place(tmp_path, (tag, b"SQ", item(transform)), gone=both)) == "MALFORMED_HEADER"


def item(content: bytes, length: int | None = None) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content) if length is None else length) + content


# ------------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("high", [15, 12, 10, 0])
def test_values_in_other_bits_than_the_lowest_are_refused(tmp_path: Path, high: int) -> None:
    assert code_of(place(tmp_path, (HIGH_BIT, b"US", struct.pack("<H", high)))) == "UNSUPPORTED"


CUT = {
    "item head": b"\xfe\xff\x00\xe0",
    "item": item(b"\x01\x02", 256),
    "nested": item(element(0x00289145, b"SQ", b"\x01\x02\x03\x04")),
    "no item": b"\x28\x00\x53\x10DS\x02\x001 ",
    "endless": b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element(0x00289145, b"SQ", b"", length=256),
    "place": item(element(0x00209113, b"SQ", b"\xfe\xff\x00\xe0")),
}


@pytest.mark.parametrize("tag", [LUT, SHARED, PER_FRAME], ids=["lut", "shared", "per frame"])
@pytest.mark.parametrize("kind", list(CUT))
def test_a_sequence_that_ends_within_an_item_is_a_rejection(tmp_path: Path, tag: int, kind: str) -> None:
    # Neither rescale nor place is sought within a table.
    wanted = "" if tag == LUT and kind in ("nested", "place") else "MALFORMED_HEADER"
    assert code_of(place(tmp_path, (tag, b"SQ", CUT[kind]), gone=(SLOPE, INTERCEPT))) == wanted


@pytest.mark.parametrize("kind", ["item head", "place"])
def test_a_cut_sequence_ends_no_batch(tmp_path: Path, kind: str) -> None:
    config, workspace = pipeline(tmp_path)
    place(Path(config.source.path), (SHARED, b"SQ", CUT[kind]))
    save(instance(2), Path(config.source.path) / "good")
    assert run(config, workspace) == {"file": "MALFORMED_HEADER", "good": ""}


def pipeline(root: Path) -> tuple[PipelineConfig, Workspace]:
    workspace, data = Workspace(root / "work"), root / "data"
    workspace.prepare()
    data.mkdir()
    source = {"kind": "dicom", "path": str(data)}
    return PipelineConfig.model_validate({"name": "t", "source": source, "workspace": str(workspace.root)}), workspace


def run(config: PipelineConfig, workspace: Workspace) -> dict[str, str]:
    """Index what is new or changed; gives the code of every file."""
    for batch in plan_batches(config, workspace):
        index_files(config, workspace, batch)
    table = merge_index(workspace)
    return {Path(path).name: code for path, code in zip(table["path"], table["code"], strict=True)}


@pytest.mark.parametrize("digits", [3, 4, 400, 5000])
def test_an_absurd_age_is_no_age(tmp_path: Path, digits: int) -> None:
    path = place(tmp_path, (AGE, b"AS", even(b"9" * digits + b"Y")))
    found = Dicom().index(path, context(tmp_path))
    assert not isinstance(found, Rejected)
    attributes = json.loads(json.dumps(found["attributes"], allow_nan=False))
    assert attributes["age_years"] == (90.0 if digits == 3 else None)


def test_a_damaged_length_of_the_meta_group_is_left_to_pydicom(tmp_path: Path) -> None:
    path = place(tmp_path)
    whole = path.read_bytes()
    assert whole[132:140] == b"\x02\0\0\0UL\x04\0"
    # As a value of 2 bytes, it is no long integer.
    path.write_bytes(whole[:138] + b"\x02\0" + whole[142:])
    with pytest.raises(indexing.InDoubt):
        indexing.HeaderIndex(context(tmp_path).pseudonym).index(path)
    code_of(path)


# -------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("lying", [False, True], ids=["true length", "wrong length"])
@pytest.mark.parametrize("preamble", [True, False])
def test_what_inflates_without_bound_is_never_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preamble: bool, lying: bool
) -> None:
    monkeypatch.setattr(files, "LARGEST_INFLATED", 1 << 20)
    rows = 1 << 11
    pixels = {"Rows": rows, "Columns": rows, "PixelData": bytes(2 * rows * rows)}
    path = save(instance(1, **pixels), tmp_path / "file", DeflatedExplicitVRLittleEndian)
    whole = bytearray(path.read_bytes())
    assert len(whole) < 20_000
    if lying:
        # It points behind the file.
        whole[140:144] = struct.pack("<I", 1 << 20)
    path.write_bytes(whole if preamble else whole[132:])

    def never(*_: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr(zlib, "decompress", never)
    assert code_of(path) == "UNSUPPORTED"


def test_a_small_deflated_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_INFLATED", 1 << 20)
    save(instance(1), tmp_path / "file", DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read(only(tmp_path))[0][0], stored(1).astype(int) - 1024)


def test_more_frames_than_a_file_may_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixelformat, "_MOST_FRAMES", 3)
    for frames, code in ((3, ""), (4, "UNSUPPORTED")):
        pixels = np.stack([stored(number) for number in range(frames)]).tobytes()
        path = save(instance(1, NumberOfFrames=frames, PixelData=pixels), tmp_path / "file")
        assert code_of(path) == code


def runs(plane: bytes) -> bytes:
    return np.array([2, 64, 64 + len(plane), *[0] * 13], "<u4").tobytes() + plane + plane


def test_runs_that_unpack_to_more_than_the_frame_take_no_memory(tmp_path: Path) -> None:
    described = read_format(read_file(save(instance(1), tmp_path / "file")))
    whole = runs(b"\x81\x07")
    np.testing.assert_array_equal(decode_runs(whole, described), np.full((1, ROWS * COLS), 0x0707))
    with pytest.raises(RuntimeError, match="TOO_SMALL"):
        decode_runs(runs(b"\x81\x07" * (1 << 20)), described)


def test_an_endless_run_is_undecodable(tmp_path: Path) -> None:
    save(compressed(runs(b"\x81\x07" * (1 << 12))), tmp_path / "file", RLELossless)
    with pytest.raises(UnreadableSource, match="UNDECODABLE"):
        read(only(tmp_path))


def compressed(frame: bytes) -> Dataset:
    dataset = instance(1, PixelData=encapsulate([frame]))
    dataset["PixelData"].is_undefined_length = True
    return dataset


# --------------------------------------------------------------------------------------------------------- looked again


@pytest.mark.parametrize("cause", ["access", "decoder"])
def test_what_may_pass_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    config, workspace = pipeline(tmp_path)
    path = save(compressed(runs(b"\x81\x07")), Path(config.source.path) / "file", RLELossless)
    stamp = path.stat()

    def refusing(opener: Callable[..., object]) -> Callable[..., object]:
        def open_other(where: object, *rest: object) -> object:
            if str(where) == str(path):
                raise PermissionError(13, "Permission denied")
            return opener(where, *rest)

        return open_other

    with monkeypatch.context() as patch:
        if cause == "access":
            patch.setattr(files.io, "FileIO", refusing(files.io.FileIO))
            patch.setattr(indexing.os, "open", refusing(indexing.os.open))
        else:
            patch.setattr(pixels, "support", lambda _: support.Support("", "", "", "install it"))
        codes = run(config, workspace)
    assert codes == {"file": "UNREADABLE_FILE" if cause == "access" else "UNDECODABLE"}
    assert path.stat() == stamp
    assert run(config, workspace) == {"file": ""}
    assert plan_batches(config, workspace) == []


def test_what_does_not_pass_is_not_looked_at_again(tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path)
    place(Path(config.source.path), decimal(SLOPE, b"abc"))
    assert run(config, workspace) == {"file": "MALFORMED_HEADER"}
    assert plan_batches(config, workspace) == []


@pytest.mark.parametrize("way", ["plan", "header"])
@pytest.mark.parametrize("change", ["longer", "moved over it"])
def test_a_file_replaced_between_two_frames_is_noticed(tmp_path: Path, way: str, change: str) -> None:
    frames = np.stack([stored(number) for number in range(2)])
    path = save(instance(0, NumberOfFrames=2, PixelData=frames.tobytes()), tmp_path / "data" / "file")
    source = only(path.parent)
    assert "pixels" in source.reader
    if way == "header":
        source = dataclasses.replace(source, reader={})
    others = {"InstitutionName": "y" * 50} if change == "longer" else {}
    other = save(instance(0, NumberOfFrames=2, PixelData=frames[::-1].tobytes(), **others), tmp_path / "other")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    with Dicom().open(source) as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 0, ROWS, COLS))[0][0], frames[0].astype(int) - 1024)
        other.replace(path)
        with pytest.raises(UnreadableSource, match="CHANGED"):
            raster.read(Window(1, 0, 0, ROWS, COLS))


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("signed", "padding", "masked"),
    [
        (False, -2000, 2096),
        (False, 0xFFFF, 4095),
        (True, -2000, -2000),
        (True, -3000, 1096),
        (True, 2048, -2048),
        (True, 0xF830, -2000),
    ],
)
def test_padding_outside_the_stored_bits_masks_its_pixels(
    tmp_path: Path, signed: bool, padding: int, masked: int
) -> None:
    held = np.zeros((ROWS, COLS), np.uint16)
    held[0], held[1, 0] = np.uint16(padding & 0xFFFF), np.uint16((masked + 1) & 0xFFF)
    values = {"PixelData": held.tobytes(), "PixelRepresentation": int(signed), "RescaleIntercept": 0}
    dataset = instance(1, **values)
    dataset.add_new(PADDING, "US" if padding >= 0 else "SS", padding)
    save(dataset, tmp_path / "file")
    read_pixels, valid = read(only(tmp_path))
    assert not valid[0].any()
    assert valid[1:].all()
    assert not read_pixels[0, 0].any()
    described = read_format(read_file(tmp_path / "file"))
    assert described.padding == (masked, masked)


@pytest.mark.parametrize(
    ("signed", "ends", "masked"),
    [
        (True, (-32768, -2049), None),
        (True, (-3000, -1500), (-2048, -1500)),
        (True, (-2000, -1500), (-2000, -1500)),
        (False, (4000, 5000), (4000, 4095)),
        (False, (5000, 4100), (4, 904)),
    ],
)
def test_a_range_of_padding_never_grows(
    tmp_path: Path, signed: bool, ends: tuple[int, int], masked: tuple[int, int] | None
) -> None:
    dataset = instance(1, PixelRepresentation=int(signed))
    for tag, value in zip((PADDING, PADDING_LIMIT), ends, strict=True):
        dataset.add_new(tag, "SS" if signed else "US", value)
    assert read_format(read_file(save(dataset, tmp_path / "file"))).padding == masked


@pytest.mark.parametrize("intercept", [-128, 0.5])
def test_colours_are_not_rescaled_and_stay_unsigned(tmp_path: Path, intercept: float) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (ROWS, COLS, 3)).astype(np.uint8)
    values = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    save(instance(1, **values, **bits, RescaleIntercept=intercept, PixelData=colours.tobytes()), tmp_path / "file")
    source = only(tmp_path)
    assert source.dtype == "uint8"
    np.testing.assert_array_equal(read(source)[0], colours.transpose(2, 0, 1))

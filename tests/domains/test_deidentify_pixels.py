"""Pixels: untouched where nothing is masked; masked, they are written uncompressed under a header that says so."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from deidentify_cases import pixels_of, write
from dicom_cases import COLS, ROWS, instance, save, stored
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, PixelAccess, Rectangle, Reject, Verdict
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource


class Says:
    """A judge with one verdict; it remembers what it was shown."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.seen: list[tuple[str, NDArray[np.generic]]] = []

    def judge(self, header: Dataset, pixels: PixelAccess) -> Verdict:
        frames = np.stack([pixels.stored(frame) for frame in range(pixels.frames)])
        assert frames.shape[:3] == (pixels.frames, pixels.rows, pixels.cols)
        self.seen.append((str(header.PatientName), frames))
        return self.verdict


TOP_LEFT = Mask((Rectangle(0, 0, 2, 3), Rectangle(ROWS - 1, COLS - 1, 9, 9)), "banner")


def blackened(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    wanted = values.copy()
    wanted[:2, :3] = wanted[-1, -1] = values.min()
    return wanted


def compressed(dataset: Dataset, path: Path) -> Path:
    """Write the frames of a data set as JPEG 2000 lossless."""
    frames = stored_values(save(dataset, path.with_suffix(".native")))
    each = frames if int(dataset.get("NumberOfFrames", 1)) > 1 else frames[None]
    dataset.PixelData = encapsulate([imagecodecs.jpeg2k_encode(frame, reversible=True) for frame in each])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    return save(dataset, path, JPEG2000Lossless)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_masked_pixels_of_any_native_syntax(tmp_path: Path, syntax: str) -> None:
    dataset = instance(2)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored(2).astype(">u2").tobytes()
    judge = Says(TOP_LEFT)
    found = write(save(dataset, tmp_path / "in.dcm", syntax), tmp_path / "out", judge=judge)
    ((name, frames),) = judge.seen
    assert name == "Canary^Name"
    assert frames[0].tolist() == stored(2).tolist()
    assert pixels_of(found).tolist() == blackened(stored(2)).tolist()
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert found.BurnedInAnnotation == "NO"
    assert [item.CodeValue for item in found.DeidentificationMethodCodeSequence] == ["113100", "113101"]


def test_masked_compressed_frames_become_native(tmp_path: Path) -> None:
    frames = np.stack([stored(0), stored(5)])
    dataset = instance(0, NumberOfFrames=2, PixelData=frames.tobytes(), LossyImageCompression="00")
    path = compressed(dataset, tmp_path / "in.dcm")
    second = Mask((Rectangle(4, 1, 2, 2, frame=1),), "text")
    write(path, tmp_path / "out", judge=Says(second))
    (output,) = (tmp_path / "out").rglob("*.dcm")
    wanted = frames.copy()
    wanted[1, 4:6, 1:3] = frames[1].min()
    assert stored_values(output).tolist() == wanted.tolist()
    found = dcmread(output)
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert len(found.PixelData) == frames.nbytes
    assert found["PixelData"].VR == "OW"


def test_compressed_pixels_without_a_mask_stay_byte_for_byte(tmp_path: Path) -> None:
    path = compressed(instance(1), tmp_path / "in.dcm")
    found = write(path, tmp_path / "out")
    assert found.PixelData == dcmread(path).PixelData
    assert found.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert "BurnedInAnnotation" not in found


def test_colours_become_rgb_by_pixel(tmp_path: Path) -> None:
    planes = np.arange(3 * ROWS * COLS, dtype=np.uint8).reshape(3, ROWS, COLS)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    dataset = instance(0, PixelData=planes.tobytes(), RescaleSlope=None, RescaleIntercept=None, **colour, **bits)
    found = write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out", judge=Says(TOP_LEFT))
    wanted = planes.transpose(1, 2, 0).copy()
    wanted[:2, :3] = wanted[-1, -1] = 0
    assert found.PlanarConfiguration == 0
    assert found.PhotometricInterpretation == "RGB"
    assert found.pixel_array.tolist() == wanted.tolist()


def test_dark_is_the_highest_value_of_monochrome1_and_signs_stay(tmp_path: Path) -> None:
    values = stored(1).astype(np.int16) - 50
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": "MONOCHROME1"}
    dataset = instance(0, PixelData=values.tobytes(), **signed)
    found = write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out", judge=Says(TOP_LEFT))
    assert found.pixel_array[0, 0] == values.max()
    assert found.pixel_array[5].tolist() == values[5].tolist()


def test_one_bit_pixels_are_masked(tmp_path: Path) -> None:
    bits = (np.arange(ROWS * COLS) % 3 > 0).astype(np.uint8).reshape(ROWS, COLS)
    one = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "RescaleSlope": None, "RescaleIntercept": None}
    dataset = instance(0, PixelData=np.packbits(bits.ravel(), bitorder="little").tobytes(), **one)
    write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out", judge=Says(TOP_LEFT))
    (output,) = (tmp_path / "out").rglob("*.dcm")
    bits[:2, :3] = bits[-1, -1] = 0
    assert stored_values(output).tolist() == bits.tolist()


def test_an_overlay_in_unused_bits_of_the_pixels_is_cleared(tmp_path: Path) -> None:
    values = stored(1) | np.uint16(1 << 15)
    dataset = instance(1, PixelData=values.tobytes())
    dataset.add(DataElement(Tag(0x6000, 0x0102), "US", 15))
    found = write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out")
    assert pixels_of(found).tolist() == stored(1).tolist()
    assert not [tag for tag in found.keys() if tag.group == 0x6000]  # noqa: SIM118


def test_what_the_judge_says_of_text(tmp_path: Path) -> None:
    inspected = write(save(instance(0), tmp_path / "0.dcm"), tmp_path / "out", judge=Says(Keep(inspected=True)))
    assert inspected.BurnedInAnnotation == "NO"
    assert inspected.PixelData == stored(0).tobytes()
    with pytest.raises(UnreadableSource, match=r"SOME_TEXT: .*: a reason"):
        write(save(instance(1), tmp_path / "1.dcm"), tmp_path / "out", judge=Says(Reject("SOME_TEXT", "a reason")))
    with pytest.raises(UnreadableSource, match="BURNED_IN_ANNOTATION"):
        write(save(instance(2, BurnedInAnnotation="YES"), tmp_path / "2.dcm"), tmp_path / "out")
    with pytest.raises(ValueError, match="at least one pixel"):
        Mask((), "nothing")


def test_a_large_value_before_the_pixels_comes_along_and_what_follows_them_does_not(tmp_path: Path) -> None:
    # Larger than what the reader holds in memory at once.
    profile = np.arange(2 << 20, dtype=np.uint32).astype(np.uint8).tobytes()
    path = save(instance(1, ICCProfile=profile), tmp_path / "in.dcm")
    path.write_bytes(path.read_bytes() + b"\0" * 4096)
    found = write(path, tmp_path / "out")
    assert found.ICCProfile == profile
    assert found.PixelData == stored(1).tobytes()
    (output,) = (tmp_path / "out").rglob("*.dcm")
    assert output.read_bytes().endswith(found.PixelData)

"""Damaged pixels in a process of their own: bounded memory and time, an error of ours or pixels, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_cases import instance, save
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

EDGE = 64
LIMIT_MIB = 300
"""Above what the imports take. A frame may have a gibibyte, but none of these files holds one."""

_CHILD = """
import random, sys, time
from pathlib import Path
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource

def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

good, folder, count, mode = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
whole = good.read_bytes()
stored_values(good)
start, random_source = peak_mib(), random.Random(7)
places = {"head": (0, len(whole) // 2 if len(whole) < 4000 else 1200), "body": (900, len(whole))}
read = refused = 0
for number in range(count):
    data = bytearray(whole)
    first, last = places.get(mode, (0, len(data)))
    if mode == "cut":
        del data[random_source.randrange(400, len(data)):]
    else:
        for _ in range(random_source.randrange(1, 6)):
            place = random_source.randrange(first, min(last, len(data)))
            if random_source.random() < 0.8:
                data[place] = random_source.choice((0, 1, 127, 128, 255, random_source.randrange(256)))
            else:
                del data[place : place + random_source.randrange(1, 30)]
    path = folder / "damaged"
    path.write_bytes(data)
    try:
        stored_values(path)
        read += 1
    except UnreadableSource:
        refused += 1
print(read, refused, peak_mib() - start, time.process_time())
"""


def encoded(syntax: str) -> Dataset:
    values = np.random.default_rng(3).normal(0, 30, (EDGE, EDGE)) + np.add.outer(np.arange(EDGE) * 20, np.arange(EDGE))
    frame = values.clip(0, 4095).astype(np.uint16)
    encoders = {
        JPEGLSLossless: imagecodecs.jpegls_encode,
        JPEGLosslessSV1: lambda item: imagecodecs.jpeg8_encode(item, lossless=True, predictor=1, bitspersample=12),
        JPEG2000Lossless: lambda item: imagecodecs.jpeg2k_encode(item, codecformat="j2k", reversible=True),
        HTJ2KLossless: lambda item: imagecodecs.htj2k_encode(item, reversible=True),
        JPEGBaseline8Bit: lambda item: imagecodecs.jpeg8_encode((item >> 4).astype(np.uint8), level=80),
        RLELossless: runs,
    }
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7} if syntax == JPEGBaseline8Bit else {}
    if syntax == ExplicitVRLittleEndian:
        return instance(0, Rows=EDGE, Columns=EDGE, PixelData=frame.tobytes())
    dataset = instance(0, Rows=EDGE, Columns=EDGE, PixelData=encapsulate([encoders[syntax](frame)]), **bits)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def runs(frame: np.ndarray) -> bytes:
    planes = [np.ascontiguousarray(item).astype(np.uint8) for item in (frame >> 8, frame & 255)]
    segments = [imagecodecs.packbits_encode(plane) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    return np.array([2, 64, 64 + len(segments[0]), *[0] * 13], "<u4").tobytes() + b"".join(segments)


SYNTAXES = (
    ExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless,
    HTJ2KLossless,
)  # fmt: skip


def damage(good: Path, folder: Path, count: int, mode: str) -> tuple[int, int, float]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _CHILD, str(good), str(folder), str(count), mode]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    read, refused, extra, _ = child.stdout.split()
    return int(read), int(refused), float(extra)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_are_read_or_refused_in_bounded_memory(tmp_path: Path, syntax: str) -> None:
    good = save(encoded(syntax), tmp_path / "good", syntax)
    for mode, count in (("cut", 30), ("head", 60), ("body", 60)):
        read, refused, extra = damage(good, tmp_path / "damaged", count, mode)
        assert read + refused == count
        assert extra < LIMIT_MIB
        if mode == "cut":
            # Two bytes of padding may be cut from a compressed frame.
            assert read <= 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 65_535), ("Columns", 65_535), ("NumberOfFrames", 2_000_000_000), ("BitsAllocated", 24), ("Rows", 0)],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, HTJ2KLossless])
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, keyword: str, value: int, syntax: str) -> None:
    dataset = encoded(syntax)
    setattr(dataset, keyword, value)
    absurd = save(dataset, tmp_path / "absurd", syntax)
    script = _CHILD.replace("stored_values(good)\n", "", 1).replace("path = folder", "data = whole; path = folder")
    command = [sys.executable, "-c", script, str(absurd), str(tmp_path), "1", "body"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    read, refused, extra, _ = child.stdout.split()
    assert (read, refused) == ("0", "1")
    assert float(extra) < LIMIT_MIB

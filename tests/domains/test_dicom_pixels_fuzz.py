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

_START = """
import random, sys, time
from pathlib import Path
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource

def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
"""

_DAMAGE = """
good, folder = Path(sys.argv[1]), Path(sys.argv[2])
whole = good.read_bytes()
stored_values(good)
places = {"head": (0, len(whole) // 2 if len(whole) < 4000 else 1200), "body": (900, len(whole))}
start = peak_mib()
for task in sys.argv[3:]:
    mode, count = task.split(":")
    read, refused, random_source = 0, 0, random.Random(7)
    first, last = places.get(mode, (0, len(whole)))
    for number in range(int(count)):
        data = bytearray(whole)
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
    print(read, refused, peak_mib() - start)
"""

_ABSURD = """
start = peak_mib()
for name in sys.argv[1:]:
    read = refused = 0
    try:
        stored_values(Path(name))
        read += 1
    except UnreadableSource:
        refused += 1
    print(read, refused, peak_mib() - start)
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


Outcome = tuple[int, int, float]
"""How many were read, how many refused, and by how much the peak of memory rose, MiB."""


def in_a_child(script: str, *arguments: str) -> list[Outcome]:
    command = [sys.executable, "-c", _START + script, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    rows = [line.split() for line in child.stdout.splitlines()]
    return [(int(read), int(refused), float(extra)) for read, refused, extra in rows]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_are_read_or_refused_in_bounded_memory(tmp_path: Path, syntax: str) -> None:
    good = save(encoded(syntax), tmp_path / "good", syntax)
    counts = {"cut": 30, "head": 60, "body": 60}
    outcomes = in_a_child(_DAMAGE, str(good), str(tmp_path), *(f"{mode}:{count}" for mode, count in counts.items()))
    for (mode, count), (read, refused, extra) in zip(counts.items(), outcomes, strict=True):
        assert read + refused == count
        assert extra < LIMIT_MIB
        if mode == "cut":
            # Two bytes of padding may be cut from a compressed frame.
            assert read <= 2


ABSURD = (("Rows", 65_535), ("Columns", 65_535), ("NumberOfFrames", 2_000_000_000), ("BitsAllocated", 24), ("Rows", 0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, HTJ2KLossless])
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, syntax: str) -> None:
    files = []
    for number, (keyword, value) in enumerate(ABSURD):
        dataset = encoded(syntax)
        setattr(dataset, keyword, value)
        files.append(str(save(dataset, tmp_path / f"{number}", syntax)))
    for absurd, (read, refused, extra) in zip(ABSURD, in_a_child(_ABSURD, *files), strict=True):
        assert (read, refused) == (0, 1), absurd
        assert extra < LIMIT_MIB, absurd

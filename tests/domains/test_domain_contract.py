"""One suite over every domain: what `vitpipe.domains.base` promises holds whatever the kind of data."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import ExifTags, Image
from scene_cases import write_landsat, write_safe

from vitpipe.config import DicomSource, GeotiffSource, ImagesSource, SourceRecipe
from vitpipe.digest import digest_file
from vitpipe.domains.base import Domain, Raster, ScanContext
from vitpipe.domains.known import DOMAINS, domain_of
from vitpipe.errors import ConfigError
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

SECRETS = ("SECRET-4711", "Roe", "Jane", "19610203", "1961-02-03")


def _dicom_tree(root: Path) -> SourceRecipe:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(1)
    for series in range(2):
        series_uid, study_uid, frame_uid = generate_uid(), generate_uid(), generate_uid()
        for position in range(3):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
            dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            dataset.PatientID, dataset.PatientName = f"SECRET-4711-{series}", "Roe^Jane"
            dataset.PatientBirthDate, dataset.StudyDate, dataset.Modality = "19610203", "20200506", "CT"
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
            dataset.FrameOfReferenceUID, dataset.InstanceNumber = frame_uid, 3 - position
            dataset.ImagePositionPatient = [0, 0, 2.5 * position]
            dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.75]
            dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 40, 52, 1
            dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
            dataset.PixelPaddingValue = -2000
            pixels = rng.integers(0, 2000, (40, 52), dtype=np.int16)
            pixels[:4, :7] = -2000
            dataset.PixelData = pixels.tobytes()
            folder = root / f"series{series}"
            folder.mkdir(exist_ok=True)
            dataset.save_as(folder / f"{position:03d}", enforce_file_format=True)
    return DicomSource(path=str(root))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def _geotiff_tree(root: Path) -> SourceRecipe:
    rng = np.random.default_rng(2)
    for number in range(3):
        profile = {"count": 3, "height": 90, "width": 70, "dtype": "uint16", "nodata": 0, "compress": "deflate"}
        profile |= {"tiled": True, "blockxsize": 32, "blockysize": 16, "crs": "EPSG:32633"}
        transform = rasterio.transform.from_origin(500_000 + 40_000 * number, 5_000_000, 10, 10)
        with rasterio.open(root / f"scene{number}", "w", driver="GTiff", transform=transform, **profile) as dataset:
            pixels = rng.integers(1, 9000, (3, 90, 70), dtype=np.uint16)
            pixels[1, 5:9, 5:30] = 0
            dataset.write(pixels)
            dataset.update_tags(TIFFTAG_ARTIST="Jane Roe", TIFFTAG_HOSTCOMPUTER="SECRET-4711")
    return GeotiffSource(path=str(root), block_m=500)


def _images_tree(root: Path) -> SourceRecipe:
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.ImageDescription] = "Jane Roe", "SECRET-4711 19610203"
    exif[ExifTags.Base.Orientation] = 6
    for number in range(3):
        pixels = rng.integers(1, 255, (33, 47, 4), dtype=np.uint8)
        pixels[:6, :9, 3] = 0
        pixels[6:, :, 3] = 255
        (root / f"folder{number}").mkdir()
        Image.fromarray(pixels).save(root / f"folder{number}" / "photo.png", exif=exif)
    pages = [Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(root / "pages.tif", save_all=True, append_images=pages[1:])
    return ImagesSource(path=str(root))


TREES: dict[str, Callable[[Path], SourceRecipe]] = {
    "dicom": _dicom_tree,
    "geotiff": _geotiff_tree,
    "images": _images_tree,
}


def _products_tree(root: Path) -> SourceRecipe:
    """Scenes of several files: they are sources of the domain geotiff too."""
    rng = np.random.default_rng(4)
    for number in range(2):
        resolutions = {"B04": 10, "B05": 20, "B01": 60}
        bands = {
            (name, gsd_m): rng.integers(1, 9000, (600 // gsd_m, 600 // gsd_m), dtype=np.uint16)
            for name, gsd_m in resolutions.items()
        }
        bands["B05", 20][3:6, 2:9] = 0
        write_safe(root, bands, day=f"2021070{number + 1}")
    write_landsat(root / "landsat", {"SR_B4": rng.integers(0, 9, (50, 40), dtype=np.uint16)}, mtl=("json",))
    return GeotiffSource(path=str(root), block_m=500)


@dataclass(frozen=True)
class Case:
    domain: Domain
    context: ScanContext
    records: list[FileRecord]
    sources: list[Source]
    rejected: list[Rejected]


def _look(domain: Domain, root: Path, recipe: SourceRecipe) -> Case:
    context = ScanContext(root, Pseudonymiser(b"key"), recipe)
    records, rejected = [], []
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            rejected.append(header)
            continue
        # The index is kept on disk: what comes back from it is all that `assemble` may count on.
        kept = json.loads(json.dumps(header, allow_nan=False))
        records.append(FileRecord(path.as_posix(), path.stat().st_size, 0, digest_file(path), kept))
    found = list(domain.assemble(records, context))
    sources = [item for item in found if isinstance(item, Source)]
    rejected += [item for item in found if isinstance(item, Rejected)]
    return Case(domain, context, records, sources, rejected)


@pytest.fixture(params=[*sorted(TREES), "products"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    root = tmp_path / "data"
    root.mkdir()
    recipe = {**TREES, "products": _products_tree}[request.param](root)
    (root / "README.txt").write_text("no pixels")
    return _look(domain_of(recipe.kind), root, recipe)


def _whole(source: Source, frame: int) -> Window:
    return Window(frame, 0, 0, source.grid.height, source.grid.width)


def _each(case: Case) -> Iterator[tuple[Source, Raster]]:
    assert case.sources
    for source in case.sources:
        with case.domain.open(source) as raster:
            yield source, raster


def test_the_suite_knows_every_domain() -> None:
    assert set(TREES) == set(DOMAINS)
    with pytest.raises(ConfigError, match="no source kind"):
        domain_of("zarr")


def test_every_file_is_a_source_or_rejected_with_a_sentence(case: Case) -> None:
    assert [(Path(item.uri).name, item.junk) for item in case.rejected] == [("README.txt", True)]
    assert case.rejected[0].code.isupper()
    assert " " in case.rejected[0].reason
    used = [name for source in case.sources for name in source.files]
    assert sorted(used) == [record.path for record in case.records]


def test_the_order_does_not_depend_on_the_order_of_the_records(case: Case) -> None:
    assert len(case.sources) > 1
    for seed in range(5):
        shuffled = list(case.records)
        random.Random(seed).shuffle(shuffled)
        assert list(case.domain.assemble(shuffled, case.context)) == case.sources


def test_a_moved_tree_holds_the_same_sources(case: Case, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(case.context.root, moved)
    again = _look(case.domain, moved, case.context.recipe)
    assert [source.source_id for source in again.sources] == [source.source_id for source in case.sources]
    assert [source.group_id for source in again.sources] == [source.group_id for source in case.sources]
    assert [source.keys for source in again.sources] == [source.keys for source in case.sources]


def test_the_raster_is_what_the_source_says(case: Case) -> None:
    for source, raster in _each(case):
        assert source.domain == case.domain.name
        assert (raster.grid, raster.channels, raster.dtype) == (source.grid, source.channels, np.dtype(source.dtype))
        assert raster.block_rows >= 1
        assert source.bytes == sum(Path(name).stat().st_size for name in source.files)
        assert all(len(values) in (1, source.grid.frames) for values in source.keys.values())
        assert not any(Path(value).is_absolute() for value in source.keys["path"])
        for frame in range(source.grid.frames):
            pixels, valid = raster.read(_whole(source, frame))
            assert pixels.shape == (len(source.channels), source.grid.height, source.grid.width)
            assert pixels.dtype == raster.dtype
            assert (valid.shape, valid.dtype) == (pixels.shape[1:], np.bool_)


@pytest.mark.parametrize("edge", [7, 16, 64])
def test_windows_tile_the_whole(case: Case, edge: int) -> None:
    for source, raster in _each(case):
        for frame in reversed(range(source.grid.frames)):
            pixels, valid = raster.read(_whole(source, frame))
            for row in range(0, source.grid.height, edge):
                for col in range(0, source.grid.width, edge):
                    part, part_valid = raster.read(Window(frame, row, col, edge, edge))
                    assert part.shape == (len(source.channels), edge, edge)
                    inside = pixels[:, row : row + edge, col : col + edge]
                    height, width = inside.shape[1:]
                    assert np.array_equal(part[:, :height, :width], inside)
                    assert np.array_equal(part_valid[:height, :width], valid[row : row + edge, col : col + edge])
                    # Past the edge nothing is valid, and what is not valid is zero.
                    assert part_valid.sum() == valid[row : row + edge, col : col + edge].sum()
                    assert not part[:, ~part_valid].any()


def test_pixels_that_are_not_valid_are_zero(case: Case) -> None:
    lacking = 0
    for source, raster in _each(case):
        pixels, valid = raster.read(_whole(source, 0))
        lacking += int((~valid).sum())
        assert not pixels[:, ~valid].any()
        assert pixels[:, valid].any()
    assert lacking > 0


def test_what_is_read_may_be_written_to(case: Case) -> None:
    for source, raster in _each(case):
        first, valid = raster.read(_whole(source, 0))
        kept, kept_valid = first.copy(), valid.copy()
        first[:], valid[:] = 1, False
        again, again_valid = raster.read(_whole(source, 0))
        assert np.array_equal(again, kept)
        assert np.array_equal(again_valid, kept_valid)


def test_every_window_has_a_group(case: Case) -> None:
    for source, raster in _each(case):
        windows = [Window(source.grid.frames - 1, row, 0, 8, 8) for row in range(0, source.grid.height, 8)]
        names = raster.groups(windows)
        assert len(names) == len(windows)
        assert all(isinstance(name, str) and name for name in names)
        assert raster.groups(windows[::-1]) == names[::-1]
        assert raster.groups([_whole(source, 0)]) == [source.group_id]
        assert raster.groups([]) == []


def test_a_closed_source_holds_no_file(case: Case) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc to see which files are open")
    for source in case.sources:
        with case.domain.open(source) as raster:
            raster.read(_whole(source, 0))
        held = {str(link.resolve()) for link in descriptors.iterdir()}
        assert not held & set(source.files)


def test_no_identifier_leaves_the_reader(case: Case) -> None:
    for item in (*case.sources, *case.rejected, *(record.header for record in case.records)):
        text = repr(item)
        assert not [secret for secret in SECRETS if secret in text]


def test_a_source_that_is_gone_is_said(case: Case) -> None:
    from vitpipe.errors import UnreadableSource

    source = case.sources[0]
    for name in source.files:
        Path(name).unlink()
    with pytest.raises(UnreadableSource) as caught, case.domain.open(source) as raster:
        raster.read(_whole(source, 0))
    assert caught.value.code.isupper()
    assert any(name in caught.value.uri or caught.value.uri in name for name in source.files)


def test_headers_are_small(case: Case) -> None:
    sizes: list[Any] = [len(json.dumps(record.header)) for record in case.records]
    assert max(sizes) < 8_000

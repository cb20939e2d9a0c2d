"""What one scene consists of, before bands are chosen: its band files, what they mean, and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitpipe.domains.geotiff.products.bands import Spectrum
from vitpipe.records import Attribute, FileRecord


@dataclass(frozen=True, slots=True)
class BandFile:
    """One band in one file; a product may hold a band at several resolutions."""

    record: FileRecord
    name: str
    number: int = 1
    """Of the band in the file, from 1."""
    spectrum: Spectrum | None = None
    scale: float = 1.0
    """With `offset`: physical value = stored value * scale + offset."""
    offset: float = 0.0

    @property
    def header(self) -> Mapping[str, Any]:
        """What the index found in the file."""
        return self.record.header


@dataclass(frozen=True, slots=True)
class SceneParts:
    """The parts of one scene."""

    uri: str
    """The folder or file that the catalog names."""
    name: str
    """The label key `scene`."""
    path: str
    """The label key `path`, still with the root."""
    bands: tuple[BandFile, ...]
    units: str
    whole_folder: bool = False
    """Whether `uri` is a folder that holds this scene alone, so that a rejection of it stands for all its files."""
    quality: tuple[tuple[FileRecord, str], ...] = ()
    """Files that say what each pixel shows, and of which kind: ``scl`` or ``qa_pixel``; one a resolution."""
    extra: tuple[FileRecord, ...] = ()
    """Metadata files: part of the scene's identity."""
    invalid: tuple[int, ...] = ()
    """Stored values that are no measurement."""
    acquired_at: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    tile: str | None = None
    """The tile of the product's own scheme: an MGRS tile, or path and row."""
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> list[FileRecord]:
        """Every file of it, each once."""
        pixels = [band.record for band in self.bands] + [record for record, _ in self.quality]
        return list({record.path: record for record in (*pixels, *self.extra)}.values())

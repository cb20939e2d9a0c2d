"""The rules about headers, as data (`rules.yaml`), and how a header is matched with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydicom import Dataset

from vitpipe.domains.dicom.deidentify.judge import Rectangle
from vitpipe.domains.dicom.fields import text

ANY: Final = "*"
"""Stands for every value that is not empty."""

_CAPTURED_BY: Final = (
    "DateOfSecondaryCapture",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SecondaryCaptureDeviceSoftwareVersions",
)

Box = tuple[int, int, int, int]
"""Row, col, height, width, in pixels."""
Texts = Annotated[tuple[str, ...], AfterValidator(lambda values: tuple(value.upper() for value in values))]
"""Alternatives, in upper case as the facts are."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at, in upper case; empty where the header does not say."""

    sop_class: str
    modality: str
    manufacturer: str
    model: str
    image_type: tuple[str, ...]
    series_description: str
    conversion_type: str
    captured: bool
    """It names a secondary capture device or a date of the capture."""
    burned_in: str
    """BurnedInAnnotation (0028,0301): YES, NO or empty."""
    rows: int
    cols: int

    @classmethod
    def of(cls, header: Dataset, rows: int, cols: int) -> Facts:
        """Read them.

        Args:
            header: of the file.
            rows: height of a frame.
            cols: width of a frame.
        """

        def upper(keyword: str) -> str:
            return (text(header, keyword) or "").upper()

        return cls(
            sop_class=upper("SOPClassUID"),
            modality=upper("Modality"),
            manufacturer=upper("Manufacturer"),
            model=upper("ManufacturerModelName"),
            image_type=tuple(part.strip() for part in upper("ImageType").split("/")),
            series_description=upper("SeriesDescription"),
            conversion_type=upper("ConversionType"),
            captured=any(upper(keyword) for keyword in _CAPTURED_BY),
            burned_in=upper("BurnedInAnnotation"),
            rows=rows,
            cols=cols,
        )


class _Rule(BaseModel):
    """Keys of one rule hold together; values of one key are alternatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Literal["ctp", "deid", "stanford", "ps3.3"]
    modality: Texts = ()
    manufacturer: Texts = ()
    model: Texts = ()
    image_type: Texts = ()

    def _common(self, facts: Facts) -> bool:
        return (
            _is_one(facts.modality, self.modality)
            and _holds_one(facts.manufacturer, self.manufacturer)
            and _holds_one(facts.model, self.model)
            and (not self.image_type or any(_is_one(value, self.image_type) for value in facts.image_type))
        )


class Suspicion(_Rule):
    """A kind of file in whose pixels names are likely."""

    code: str = Field(pattern="^[A-Z_]+$")
    why: str
    sop_class: Texts = ()
    sop_class_prefix: Texts = ()
    series_description: Texts = ()
    conversion_type: Texts = ()
    captured: bool = False
    unless_stated_clean: bool = False

    def fits(self, facts: Facts) -> bool:
        """Say whether a file is of this kind."""
        return (
            self._common(facts)
            and _is_one(facts.sop_class, self.sop_class)
            and (not self.sop_class_prefix or facts.sop_class.startswith(self.sop_class_prefix))
            and _holds_one(facts.series_description, self.series_description)
            and _is_one(facts.conversion_type, self.conversion_type)
            and (facts.captured or not self.captured)
        )


class Banner(_Rule):
    """Where the frames of a device hold names."""

    rows: int | None = None
    cols: int | None = None
    cols_at_most: int | None = None
    boxes: tuple[Box, ...] = Field(min_length=1)

    def fits(self, facts: Facts) -> bool:
        """Say whether a file is of this device and size."""
        return (
            self._common(facts)
            and self.rows in (None, facts.rows)
            and self.cols in (None, facts.cols)
            and (self.cols_at_most is None or facts.cols <= self.cols_at_most)
        )

    def rectangles(self, facts: Facts) -> tuple[Rectangle, ...]:
        """Give the boxes in a frame; one that begins at its first row and column goes over the whole width."""
        return tuple(
            Rectangle(row, col, height, facts.cols if (row, col) == (0, 0) and self.cols is None else width)
            for row, col, height, width in self.boxes
        )


class Rules(BaseModel):
    """All of them; the first suspicion that fits counts, of the banners all that fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    suspicions: tuple[Suspicion, ...]
    banners: tuple[Banner, ...]


@cache
def load_rules() -> Rules:
    """Read the rules that come with the package."""
    text_of_rules = files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8")
    return Rules.model_validate(yaml.safe_load(text_of_rules))


def _is_one(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value in wanted or (ANY in wanted and bool(value))


def _holds_one(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or any(item in value for item in wanted)

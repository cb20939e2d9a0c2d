"""The geometry report of one source: what was measured, what is odd, and what was repaired."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from vitpipe.records import Json

MOST_LISTED = 32
"""Entries of a list that the report keeps; the counts are of all."""


@dataclass(frozen=True, slots=True)
class OddStep:
    """A step between two neighbouring frames that is not the usual one."""

    after: str
    """Pseudonym of the instance before it (``pseudonym#3``: frame 3 of a multi-frame instance)."""
    before: str
    from_mm: float
    """Place of the frame before it along the normal."""
    to_mm: float
    missing: int
    """Frames that are missing in it; 0: the step is no whole multiple of the usual one."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Several frames at one place."""

    at_mm: float
    """Along the normal."""
    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GeometryReport:
    """The verdict on the frames of one source, as it stands in the catalog.

    Lists hold at most 32 entries; the counts are of all.
    """

    codes: tuple[str, ...] = ()
    step_mm: float = 0.0
    """Between frames along the normal; 0 where there is no regular step."""
    usual_step_mm: float = 0.0
    """What most steps are; 0 for one frame or without positions."""
    tilt_degrees: float = 0.0
    """Between the line of the positions and the normal; negative where frames shift along the column cosines."""
    max_error_mm: float = 0.0
    """Largest distance of a frame's position from an affine of equal steps. There is an affine only below 0.01 mm."""
    missing_frames: int = 0
    gaps: tuple[OddStep, ...] = ()
    irregular_steps: int = 0
    irregular: tuple[OddStep, ...] = ()
    duplicate_frames: int = 0
    """Frames beyond the first at their place."""
    duplicates: tuple[Duplicate, ...] = ()
    repairs: tuple[str, ...] = ()
    """What was done, in sentences with numbers; nothing under `geometry: strict`."""

    def with_codes(self, codes: frozenset[str]) -> GeometryReport:
        """Give the same report with further codes."""
        return dataclasses.replace(self, codes=tuple(sorted({*self.codes, *codes})))

    def to_json(self) -> dict[str, Json]:
        """Give the JSON form: the codes, and of the other fields those that are not zero or empty.

        Under `worst` stand an amount and a clause for each code that has one. Catalogs have a report a row.
        """
        rounded = dataclasses.replace(
            self,
            step_mm=round(self.step_mm, 9),
            usual_step_mm=round(self.usual_step_mm, 9),
            tilt_degrees=round(self.tilt_degrees, 6),
            max_error_mm=round(self.max_error_mm, 6),
        )
        value: dict[str, Json] = json.loads(json.dumps(dataclasses.asdict(rounded)))
        value["worst"] = {code: [amount, words] for code, (amount, words) in self._worst().items()}
        return {name: item for name, item in value.items() if item or name == "codes"}

    def _worst(self) -> dict[str, tuple[float, str]]:
        """Give for each code how bad it is (comparable between sources) and a clause that says so."""
        found: dict[str, tuple[float, str]] = {}
        if self.missing_frames:
            longest = max(self.gaps, key=lambda gap: gap.missing)
            found["GAP"] = (
                float(self.missing_frames),
                f"{self.missing_frames} frame(s) missing, {longest.missing} of them between {longest.from_mm:.2f} and "
                f"{longest.to_mm:.2f} mm along the normal",
            )
        if self.irregular_steps or self.max_error_mm:
            found["IRREGULAR"] = (
                self.max_error_mm,
                f"positions up to {self.max_error_mm:.3f} mm off equal steps of about {self.usual_step_mm:.3f} mm",
            )
        if self.duplicate_frames:
            found["DUPLICATE_POSITION"] = (
                float(self.duplicate_frames),
                f"{self.duplicate_frames} frame(s) at a place that another frame has, the first at "
                f"{self.duplicates[0].at_mm:.2f} mm along the normal",
            )
        if self.tilt_degrees:
            found["TILT"] = (abs(self.tilt_degrees), f"tilted by {self.tilt_degrees:.2f} degrees")
        if self.repairs:
            found["REPAIRED"] = (float(len(self.repairs)), "; ".join(self.repairs))
        return {code: value for code, value in found.items() if code in self.codes}

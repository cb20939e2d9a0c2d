"""Put the planes of a label object onto its sources, count what does not fit, and make a label set of what does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitpipe.config import RegionLabelRecipe
from vitpipe.digest import digest_bytes
from vitpipe.errors import LabelError
from vitpipe.labels import objects
from vitpipe.labels.base import LabelSet, check_class_names
from vitpipe.labels.objects import Candidates, Gathered, LabelObject, in_frame_of_reference
from vitpipe.labels.planes import Hit, LabelPlane, Miss, Stack
from vitpipe.labels.regions import RegionLabels, TileRule, classes_of
from vitpipe.records import Source, Task, count_codes


@dataclass
class Placing:
    """Where the planes of one label object lie."""

    item: LabelObject
    stacks: Sequence[Stack]
    gathered: Gathered
    misses: list[Miss] = field(default_factory=list)

    @classmethod
    def of(
        cls, item: LabelObject, references: Mapping[str, Sequence[str]], candidates: Candidates, gathered: Gathered
    ) -> Placing | None:
        """Find the sources of an object; None, and a row, where there are none."""
        stacks = candidates.stacks(references)
        if not stacks:
            reason = "the images that it was drawn on are not in the catalog (not there, rejected, or another modality)"
            gathered.reject(item.path, objects.NO_SOURCE, reason)
            return None
        return cls(item, stacks, gathered)

    def keep_frame_of_reference(self, stated: Sequence[str]) -> bool:
        """Keep the sources in one of the frames of reference stated (pseudonyms); False, and a row: there is none."""
        kept = in_frame_of_reference(self.stacks, stated)
        if not kept:
            known = sorted({name for stack in self.stacks for name in stack.frames_of_reference})
            reason = (
                f"it lies in the frame of reference {', '.join(stated)}, its images in {', '.join(known)} "
                "(pseudonyms): their millimetres have nothing in common; register or draw it again on these images"
            )
            self.gathered.reject(self.item.path, objects.OTHER_FRAME, reason)
            return False
        self.stacks = kept
        return True

    def locate(self, plane: LabelPlane) -> list[Hit]:
        """Give the frames on which a plane lies, one a source; where there is none it is counted."""
        found = [stack.locate(plane) for stack in self.stacks]
        hits = [item for item in found if isinstance(item, Hit)]
        if not hits:
            self.count([item for item in found if isinstance(item, Miss)])
        return hits

    def count(self, misses: Sequence[Miss]) -> None:
        """Count a plane that lies on no source; of the reasons the one that comes nearest to a hit says most."""
        self.misses.append(min(misses, key=_nearness))

    def finish(self, drawn: Mapping[tuple[str, int], Sequence[tuple[str, Any]]]) -> None:
        """Take what was drawn, unless the object's geometry does not agree with that of its images."""
        off = [miss for miss in self.misses if miss.off_grid]
        if off:
            worst = max(off, key=lambda miss: miss.distance_mm or 0.0)
            by = f" by {worst.distance_mm:.2f} mm" if worst.distance_mm is not None else ""
            reason = (
                f"{len(off)} plane(s) do not lie on the grid of the image{by}: {worst.what}; the object is not used: "
                "resample or draw it on these images"
            )
            self.gathered.reject(self.item.path, objects.OFF_GRID, reason)
            return
        if self.misses:
            farthest = max((miss.distance_mm or 0.0 for miss in self.misses), default=0.0)
            reason = (
                f"{len(self.misses)} plane(s) lie on no frame of the image, the farthest {farthest:.2f} mm from one; "
                "the others are used"
            )
            self.gathered.reject(self.item.path, objects.NO_FRAME, reason)
        if not drawn:
            if not self.misses:
                self.gathered.reject(self.item.path, objects.EMPTY, "nothing is drawn in it; it is not used")
            return
        self.gathered.take(self.item, drawn)
        self.gathered.sources.update(source_id for source_id, _ in drawn)


def _nearness(miss: Miss) -> tuple[bool, float]:
    return not miss.off_grid, miss.distance_mm if miss.distance_mm is not None else float("inf")


def region_label_set(recipe: RegionLabelRecipe, sources: Sequence[Source], gathered: Gathered) -> LabelSet:
    """Make the label set of what the label objects drew.

    Args:
        recipe: how parts of a tile become its class.
        sources: the catalog.
        gathered: what was drawn.

    Raises:
        LabelError: no object can be used, or a class name holds ``|``.
    """
    codes = count_codes(gathered.rejected)
    counted = ", ".join(f"{count} {code}" for code, count in codes.items())
    if not gathered.used:
        first = gathered.rejected[0]
        raise LabelError(
            f"no label object in {recipe.path} can be used ({counted}); the first is {first.uri}: {first.reason}"
        )
    rule = TileRule(recipe.min_share, recipe.background, recipe.multi_label, recipe.tile_class, recipe.priority)
    drawings = {frame: tuple(parts) for frame, parts in sorted(gathered.drawings.items())}
    regions = RegionLabels(rule, drawings, frozenset(gathered.sources))
    classes = tuple(classes_of(drawings.values(), rule))
    check_class_names(classes)
    frames = {source.source_id: source.grid.frames for source in sources}
    notes = [f"{len(gathered.used)} label object(s) are drawn on {len(gathered.sources)} source(s)"]
    notes += rule.notes(classes)
    if counted:
        # No path: notes go to Prefect and into reports, and a file's name may be a patient's.
        notes.append(f"label objects not used, or not wholly: {counted} (see the quarantine table)")
    if missing := len(sources) - len(gathered.sources):
        notes.append(f"{missing} of {len(sources)} source(s) have no label: kept for prediction, not trained on")
    values = recipe.model_dump_json(exclude={"path"})
    used = Counter(gathered.used)
    digest = digest_bytes(values.encode("utf-8"), "\n".join(sorted(used.elements())).encode("ascii"))
    return LabelSet(
        rows=regions.rows(frames),
        classes=classes,
        multi_label=recipe.multi_label,
        notes=tuple(notes),
        digest=digest,
        regions=regions,
        rejected=tuple(gathered.rejected),
        task=Task.SEGMENTATION if recipe.per == "pixel" else Task.CLASSIFICATION,
    )

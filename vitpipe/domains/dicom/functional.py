"""What tells the frames of a multi-frame file apart: stacks, times, dimension indices (PS3.3 C.7.6.16, C.7.6.17)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import children, number, numbers, text, value_of
from vitpipe.domains.dicom.files import PARSE_ERRORS

# In any case another stack: sequence of the functional group, then the element in its item.
_STACK_FIELDS: Final = (
    ("FrameContentSequence", "StackID"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRModifierSequence", "InversionTimes"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("PETFrameTypeSequence", "FrameType"),
)
_TIME_FIELDS: Final = (("FrameContentSequence", "TemporalPositionIndex"),)
# Another stack only where positions repeat: some makers count them up frame by frame.
_MOMENT_FIELDS: Final = (
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
)
# Dimensions along which a volume extends: InStackPositionNumber, ImagePositionPatient, ImagePositionVolume.
_SPATIAL: Final = frozenset({0x00209057, 0x00200032, 0x00209301})


@dataclass(frozen=True, slots=True)
class FrameKinds:
    """Small numbers that tell frames apart, one a frame; empty where all frames are alike. None of them identifies."""

    stacks: tuple[int, ...] = ()
    """Frames of one stack (StackID, echo, b-value and direction, inversion time, frame type) have one number."""
    times: tuple[int, ...] = ()
    """Frames of one temporal position have one number."""
    indices: tuple[tuple[int, ...], ...] = ()
    """Values of the dimension indices that are not spatial, then numbers of acquisition and time offset."""
    ranks: tuple[int, ...] = ()
    """Place of each frame in the order of its dimension indices; empty where that is the order of the file."""


NO_KINDS: Final = FrameKinds()


def read_frame_kinds(dataset: Dataset, frames: int) -> FrameKinds:
    """Read what tells the frames apart; all empty for one frame, or where the groups do not match the frames."""
    groups = list(children(dataset, "PerFrameFunctionalGroupsSequence"))[:frames] if frames > 1 else []
    if len(groups) != frames:
        return NO_KINDS
    pointers = [_pointer(item) for item in children(dataset, "DimensionIndexSequence")]
    values = [_index_values(group) for group in groups]
    whole = bool(pointers) and all(len(item) == len(pointers) for item in values)
    other = [place for place, pointer in enumerate(pointers) if pointer not in _SPATIAL] if whole else []
    moments = [_numbered([_key(group, (field,)) for group in groups]) for field in _MOMENT_FIELDS]
    indices = [
        (*(values[frame][place] for place in other), *(column[frame] for column in moments if column))
        for frame in range(frames)
    ]
    order = sorted(range(frames), key=lambda frame: (values[frame], frame)) if whole else list(range(frames))
    ranks = [0] * frames
    for rank, frame in enumerate(order):
        ranks[frame] = rank
    return FrameKinds(
        stacks=_numbered([_stack_key(group) for group in groups]),
        times=_numbered([_key(group, _TIME_FIELDS) for group in groups]),
        indices=tuple(indices) if len(set(indices)) > 1 else (),
        ranks=tuple(ranks) if order != list(range(frames)) else (),
    )


def _stack_key(group: Dataset) -> tuple[str, ...]:
    directions = [
        _rounded(numbers(direction, "DiffusionGradientOrientation", 3))
        for diffusion in children(group, "MRDiffusionSequence")
        for direction in children(diffusion, "DiffusionGradientDirectionSequence")
    ]
    return (*_key(group, _STACK_FIELDS), *directions)


def _key(group: Dataset, fields: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(
        _value(next(children(group, sequence), None), keyword, skip=2 if keyword == "FrameType" else 0)
        for sequence, keyword in fields
    )


def _value(item: Dataset | None, keyword: str, *, skip: int) -> str:
    if item is None:
        return ""
    found = number(item, keyword)
    if found is not None:
        return _rounded((found,))
    # Values 1 and 2 of a frame type (ORIGINAL, PRIMARY) do not tell stacks apart.
    return "/".join((text(item, keyword) or "").split("/")[skip:])


def _rounded(values: Sequence[float] | None) -> str:
    """Write numbers so that other last digits of one value make no other stack."""
    return "/".join(f"{value:.6g}" for value in values) if values else ""


def _numbered(keys: Sequence[Hashable]) -> tuple[int, ...]:
    """Number keys in the order in which they appear; nothing where there is one alone."""
    known: dict[Hashable, int] = {}
    numbered = tuple(known.setdefault(key, len(known)) for key in keys)
    return numbered if len(known) > 1 else ()


def _pointer(item: Dataset) -> int:
    value = value_of(item, "DimensionIndexPointer")
    return int(value) if isinstance(value, int) else 0


def _index_values(group: Dataset) -> tuple[int, ...]:
    for content in children(group, "FrameContentSequence"):
        value = value_of(content, "DimensionIndexValues")
        try:
            return (int(value),) if isinstance(value, int) else tuple(int(item) for item in value or ())
        except PARSE_ERRORS:
            return ()
    return ()

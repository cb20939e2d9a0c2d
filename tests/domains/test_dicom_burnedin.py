"""Text burned into pixels, judged by the header: every rule of the table, and what it masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from tests.domains.burnedin_cases import Frames, covered, header, region, ultrasound
from vitpipe.domains.dicom.burnedin import make_judge
from vitpipe.domains.dicom.burnedin.header import HeaderJudge
from vitpipe.domains.dicom.burnedin.rules import ANY, Banner, Facts, Suspicion, load_rules
from vitpipe.domains.dicom.burnedin.ultrasound import image_regions, outside
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, Rectangle, Reject, Verdict

NAME = "QZPERSON"


def judge(data: Dataset, rows: int = 64, cols: int = 80) -> Verdict:
    pixels = Frames(np.zeros((1, rows, cols), np.uint8))
    verdict = make_judge().judge(data, pixels)
    assert pixels.decoded == 0
    return verdict


def code(verdict: Verdict) -> str:
    return verdict.code if isinstance(verdict, Reject) else type(verdict).__name__


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "Keep"),
        ({"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "Keep"),
        ({"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY"]}, "Keep"),
        ({"Modality": "CT", "SeriesDescription": "LOW DOSE CHEST"}, "Keep"),
        ({"Modality": "CT", "BurnedInAnnotation": "YES"}, "BURNED_IN_ANNOTATION"),
        ({"Modality": "CT", "BurnedInAnnotation": "NO"}, "Keep"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "ENCAPSULATED_DOCUMENT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "BurnedInAnnotation": "NO"}, "ENCAPSULATED_DOCUMENT"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "SCREEN_SAVE"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO"}, "SCREEN_SAVE"),
        ({"Modality": "CT", "SeriesDescription": f"{NAME} Dose Report"}, "DOSE_REPORT"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "DOSE"]}, "DOSE_REPORT"),
        ({"Modality": "CR", "ConversionType": "DF"}, "SCANNED_FILM"),
        ({"Modality": "MG", "Manufacturer": "VIDAR Systems"}, "SCANNED_FILM"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SECONDARY_CAPTURE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "SECONDARY_CAPTURE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BurnedInAnnotation": "NO"}, "Keep"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BurnedInAnnotation": "YES"}, "BURNED_IN_ANNOTATION"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}, "Keep"),
        ({"Modality": "OT"}, "SECONDARY_CAPTURE"),
        ({"Modality": "SC"}, "SECONDARY_CAPTURE"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "SECONDARY_CAPTURE"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY"], "BurnedInAnnotation": "NO"}, "Keep"),
        ({"Modality": "CT", "ConversionType": "WSD"}, "SECONDARY_CAPTURE"),
        ({"Modality": "CT", "SecondaryCaptureDeviceManufacturer": "M"}, "SECONDARY_CAPTURE"),
        ({"Modality": "ES"}, "SECONDARY_CAPTURE"),
        ({"Modality": "US"}, "ULTRASOUND_SCREEN"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, "Keep"),
        ({"Modality": "US", "BurnedInAnnotation": "YES"}, "BURNED_IN_ANNOTATION"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1"}, "ULTRASOUND_SCREEN"),
    ],
)
def test_a_header_decides(values: dict[str, object], expected: str) -> None:
    verdict = judge(header(**values))
    assert code(verdict) == expected
    if isinstance(verdict, Reject):
        assert NAME not in verdict.reason
    if isinstance(verdict, Keep):
        # Nobody looked at the pixels: it must not be claimed.
        assert not verdict.inspected


def test_outside_the_ultrasound_regions_all_is_masked_and_inside_nothing() -> None:
    regions = [region(10, 12, 39, 49), region(30, 40, 69, 59), region(0, 0, 79, 63, kind=0)]
    verdict = judge(ultrasound(regions))
    assert isinstance(verdict, Mask)
    expected = np.ones((64, 80), np.bool_)
    expected[12:50, 10:40] = False
    expected[40:60, 30:70] = False
    np.testing.assert_array_equal(covered(verdict.rectangles, 64, 80), expected)


def test_what_an_ultrasound_states_of_text_does_not_matter_where_the_screen_is_masked() -> None:
    for stated in ("YES", "NO", ""):
        assert code(judge(ultrasound([region(10, 10, 60, 60)], BurnedInAnnotation=stated))) == "Mask"


@pytest.mark.parametrize(
    "regions",
    [
        [region(0, 0, 79, 63)],
        # A corner that was counted as exclusive leaves an edge: to mask that is no masking.
        [region(0, 0, 78, 63)],
        [region(0, 0, 78, 62)],
        [region(1, 1, 78, 62)],
        [region(-5, -5, 500, 500)],
        [region(0, 0, 79, 40), region(0, 30, 79, 63)],
        [region(10, 10, 60, 60, kind=0)],
        [region(60, 60, 10, 10)],
        [region(200, 200, 300, 300)],
        [header(RegionLocationMinX0=5)],
    ],
)
def test_regions_that_tell_nothing_are_no_reason_to_keep_a_screen(regions: list[Dataset]) -> None:
    assert code(judge(ultrasound(regions))) == "ULTRASOUND_SCREEN"
    assert code(judge(ultrasound(regions, BurnedInAnnotation="YES"))) == "BURNED_IN_ANNOTATION"


def test_a_known_banner_inside_a_region_is_masked_too() -> None:
    data = ultrasound([region(0, 0, 639, 400)], Manufacturer="Philips Medical Systems", ManufacturerModelName="iU22")
    verdict = judge(data, 480, 640)
    assert isinstance(verdict, Mask)
    mask = covered(verdict.rectangles, 480, 640)
    assert mask[:47].all()
    assert mask[401:].all()
    assert not mask[47:401].any()


@pytest.mark.parametrize(
    ("maker", "model", "shape", "boxes"),
    [
        ("Philips Medical Systems", "iU22", (480, 640), [Rectangle(0, 0, 47, 640)]),
        ("Philips Medical Systems", "iU22", (768, 1100), [Rectangle(0, 0, 75, 1100)]),
        ("ATL", "HDI 5000", (476, 640), [Rectangle(0, 40, 40, 200), Rectangle(0, 240, 16, 190)]),
        ("GE Medical Systems", "LOGIQ9", (480, 640), [Rectangle(0, 0, 40, 640)]),
    ],
)
def test_a_known_ultrasound_device_is_masked_by_its_frame(
    maker: str, model: str, shape: tuple[int, int], boxes: list[Rectangle]
) -> None:
    verdict = judge(ultrasound(Manufacturer=maker, ManufacturerModelName=model), *shape)
    assert isinstance(verdict, Mask)
    assert list(verdict.rectangles) == boxes


@pytest.mark.parametrize(
    ("maker", "model", "shape"),
    [("Philips", "iU22", (481, 640)), ("GE Medical Systems", "LOGIQ9", (768, 1024)), ("Other", "iU22", (480, 640))],
)
def test_a_known_device_with_another_frame_is_not_known(maker: str, model: str, shape: tuple[int, int]) -> None:
    assert code(judge(ultrasound(Manufacturer=maker, ManufacturerModelName=model), *shape)) == "ULTRASOUND_SCREEN"


def test_a_radiograph_of_a_known_device_is_masked_unless_it_states_text_elsewhere() -> None:
    data = header(Modality="DX", Manufacturer="Canon Inc.", ManufacturerModelName="CXDI")
    verdict = judge(data, 2592, 2208)
    assert isinstance(verdict, Mask)
    assert verdict.rectangles == (Rectangle(0, 0, 80, 2208), Rectangle(2512, 0, 80, 2208))
    data.BurnedInAnnotation = "YES"
    assert code(judge(data, 2592, 2208)) == "BURNED_IN_ANNOTATION"


@pytest.mark.parametrize("rule", load_rules().banners, ids=str)
def test_every_banner_fits_its_own_device_and_lies_in_its_frame(rule: Banner) -> None:
    rows = rule.rows or 480
    cols = rule.cols or rule.cols_at_most or max(col + width for _, col, _, width in rule.boxes)
    assert (rule.rows is None) == (rule.cols_at_most is not None), "a banner needs the size of its frame"
    for maker in rule.manufacturer:
        for model in rule.model or ("",):
            data = header(Manufacturer=f"{maker} Corp".title(), ManufacturerModelName=f"x {model}".lower())
            if rule.modality:
                data.Modality = rule.modality[0]
            if rule.image_type:
                data.ImageType = ["DERIVED", rule.image_type[0]]
            facts = Facts.of(data, rows, cols)
            assert rule.fits(facts)
            assert not rule.fits(Facts.of(data, rows + 1, cols + 1))
            boxes = rule.rectangles(facts)
            assert all(0 <= box.row < box.row + box.height <= rows for box in boxes)
            assert all(0 <= box.col < box.col + box.width <= cols for box in boxes)
            verdict = HeaderJudge().judge(data, Frames(np.zeros((1, rows, cols), np.uint8)))
            assert isinstance(verdict, Mask)
            assert set(boxes) <= set(verdict.rectangles)


@pytest.mark.parametrize("rule", load_rules().suspicions, ids=str)
def test_every_suspicion_fits_its_own_kind(rule: Suspicion) -> None:
    def first(values: tuple[str, ...]) -> str:
        return (values[0] if values[0] != ANY else "ANY") if values else ""

    data = header(
        SOPClassUID=first(rule.sop_class) or f"{first(rule.sop_class_prefix)}1",
        Modality=first(rule.modality),
        ImageType=["DERIVED", first(rule.image_type) or "PRIMARY"],
        Manufacturer=first(rule.manufacturer),
        ManufacturerModelName=first(rule.model),
        SeriesDescription=first(rule.series_description),
        ConversionType=first(rule.conversion_type),
    )
    if rule.captured:
        data.DateOfSecondaryCapture = "20200101"
    assert rule.fits(Facts.of(data, 8, 8))
    assert not rule.fits(Facts.of(Dataset(), 8, 8))
    data.BurnedInAnnotation = "NO"
    assert code(judge(data)) == ("Keep" if rule.unless_stated_clean else rule.code)


def test_an_unreadable_value_is_no_reason_to_fail() -> None:
    data = ultrasound([region(1, 1, 5, 5)])
    data.SequenceOfUltrasoundRegions[0]["RegionLocationMinX0"]._value = "left"
    assert image_regions(data, 64, 80) == ()


box = st.builds(Rectangle, st.integers(0, 19), st.integers(0, 29), st.integers(1, 20), st.integers(1, 30))


@given(st.lists(box, max_size=6))
def test_outside_is_the_complement_and_does_not_overlap(regions: list[Rectangle]) -> None:
    cut = [Rectangle(r.row, r.col, min(r.height, 20 - r.row), min(r.width, 30 - r.col)) for r in regions]
    rest = outside(cut, 20, 30)
    np.testing.assert_array_equal(covered(rest, 20, 30), ~covered(cut, 20, 30))
    assert sum(item.height * item.width for item in rest) == covered(rest, 20, 30).sum()

"""Judge pixels by the header alone: what kind of file it is, which device made it, where its image lies."""

from __future__ import annotations

from typing import Final

from pydicom import Dataset

from vitpipe.domains.dicom.burnedin.rules import Facts, Suspicion, load_rules
from vitpipe.domains.dicom.burnedin.ultrasound import image_regions, outside
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, PixelAccess, Rectangle, Reject, Verdict

BURNED_IN: Final = "BURNED_IN_ANNOTATION"
NO_REGIONS: Final = "ULTRASOUND_SCREEN"
_EDGE_PX: Final = 2

_ULTRASOUND_MODALITIES: Final = ("US", "IVUS")
_ULTRASOUND_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.6")
_REMEDY: Final = "export the image itself, or, after a look at it, set BurnedInAnnotation to NO and run again"


class HeaderJudge:
    """Decides by the rules of `rules.yaml`, in this order; the first that applies counts.

    1. Documents, dose reports, screen saves and scanned films are rejected, whatever they state.
    2. Ultrasound with calibrated regions: everything outside them is masked, and the known banners of the device.
    3. Ultrasound of a known device and size: its banners are masked.
    4. BurnedInAnnotation YES is rejected.
    5. Other known devices: their banners are masked.
    6. Ultrasound, secondary captures and video frames that do not state BurnedInAnnotation NO are rejected.
    7. Everything else is kept.

    A region or banner says where a device writes names; an operator's own note inside the image is not found by it.
    """

    def judge(self, header: Dataset, pixels: PixelAccess) -> Verdict:
        """Decide without decoding a pixel; see :class:`vitpipe.domains.dicom.deidentify.judge.PixelJudge`."""
        return self.decide(Facts.of(header, pixels.rows, pixels.cols), header)

    def decide(self, facts: Facts, header: Dataset) -> Verdict:
        """Decide by the facts of a file and, for ultrasound, the regions that its header gives."""
        suspicion = next((item for item in load_rules().suspicions if item.fits(facts)), None)
        if suspicion is not None and not suspicion.unless_stated_clean:
            return _suspected(suspicion)
        banners = _inside(_banners(facts), facts)
        ultrasound = facts.modality in _ULTRASOUND_MODALITIES or facts.sop_class in _ULTRASOUND_CLASSES
        if ultrasound and (screen := _screen(header, facts, banners)):
            return screen
        if facts.burned_in == "YES":
            return Reject(
                BURNED_IN,
                "the file states that text is burned into its pixels (BurnedInAnnotation YES); export the image "
                "without annotations",
            )
        if banners:
            return Mask(banners, "masked the places where this device writes names")
        if facts.burned_in == "NO":
            return Keep()
        return _unstated(suspicion, ultrasound=ultrasound)


def _screen(header: Dataset, facts: Facts, banners: tuple[Rectangle, ...]) -> Mask | None:
    """Mask what of an ultrasound frame is screen; None where nothing tells it from the image."""
    regions = image_regions(header, facts.rows, facts.cols)
    around = outside(regions, facts.rows, facts.cols) if regions else ()
    # Regions that fill the frame, but for an edge a corner counted as exclusive leaves, do not tell image from screen.
    if any(min(box.height, box.width) > _EDGE_PX for box in around):
        return Mask((*around, *banners), "masked all but the ultrasound regions that the header gives")
    return Mask(banners, "masked the banner that this ultrasound device writes") if banners else None


def _unstated(suspicion: Suspicion | None, *, ultrasound: bool) -> Keep | Reject:
    """Decide on a file that does not state whether text is burned in."""
    if suspicion is not None:
        return _suspected(suspicion)
    if ultrasound:
        return Reject(
            NO_REGIONS,
            "an ultrasound screen: it gives no regions that tell the image from the screen "
            f"(SequenceOfUltrasoundRegions), and the device's banner is not known; {_REMEDY}",
        )
    return Keep()


def _banners(facts: Facts) -> tuple[Rectangle, ...]:
    found = [box for banner in load_rules().banners if banner.fits(facts) for box in banner.rectangles(facts)]
    return tuple(dict.fromkeys(found))


def _inside(boxes: tuple[Rectangle, ...], facts: Facts) -> tuple[Rectangle, ...]:
    """Drop boxes that lie outside the frame: they would mask nothing."""
    return tuple(box for box in boxes if box.row < facts.rows and box.col < facts.cols)


def _suspected(suspicion: Suspicion) -> Reject:
    remedy = _REMEDY if suspicion.unless_stated_clean else "leave such files out"
    return Reject(suspicion.code, f"{suspicion.why}, whose pixels are likely to name the patient; {remedy}")

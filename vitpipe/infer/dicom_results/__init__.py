"""Predictions as DICOM objects that a PACS files beside the images: structured reports and segmentations."""

from __future__ import annotations

from vitpipe.infer.dicom_results.write import (
    ResultKind,
    require_dicom_results,
    write_dicom_results,
    write_mask_result,
)

__all__ = ["ResultKind", "require_dicom_results", "write_dicom_results", "write_mask_result"]

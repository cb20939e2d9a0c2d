"""One frozen model a stage: read from ``pipeline.yaml``, drawn as a form by the Prefect UI, digested into recipes.

No model here touches the disk: `vitpipe.loading` reads the file and makes paths absolute.
"""

from __future__ import annotations

from vitpipe.config.base import Recipe
from vitpipe.config.judging import EvaluateRecipe, GateRecipe, MetricName, RegisterRecipe
from vitpipe.config.labels import (
    DicomRtstructLabels,
    DicomSegLabels,
    FolderLabels,
    KeyKind,
    LabelRecipe,
    RasterLabels,
    RegionLabelRecipe,
    TableLabels,
    VectorLabels,
)
from vitpipe.config.learning import (
    AugmentRecipe,
    FileWeights,
    MlflowWeights,
    ModelRecipe,
    PreprocessRecipe,
    RandomWeights,
    TimmWeights,
    TrainRecipe,
    Weights,
)
from vitpipe.config.mapping import MapRecipe
from vitpipe.config.pipeline import PipelineConfig
from vitpipe.config.scenes import SceneFiles, SceneSeries
from vitpipe.config.source import (
    IDENTIFYING_KEYS,
    DataPath,
    DicomSource,
    DicomwebQuery,
    DicomwebSource,
    GeotiffSource,
    ImagesSource,
    RejectShare,
    SourceRecipe,
    StacSource,
)
from vitpipe.config.split import AttributeSplit, SplitRecipe
from vitpipe.config.stac import StacQuery
from vitpipe.config.tiles import TileRecipe

__all__ = [
    "IDENTIFYING_KEYS",
    "AttributeSplit",
    "AugmentRecipe",
    "DataPath",
    "DicomRtstructLabels",
    "DicomSegLabels",
    "DicomSource",
    "DicomwebQuery",
    "DicomwebSource",
    "EvaluateRecipe",
    "FileWeights",
    "FolderLabels",
    "GateRecipe",
    "GeotiffSource",
    "ImagesSource",
    "KeyKind",
    "LabelRecipe",
    "MapRecipe",
    "MetricName",
    "MlflowWeights",
    "ModelRecipe",
    "PipelineConfig",
    "PreprocessRecipe",
    "RandomWeights",
    "RasterLabels",
    "Recipe",
    "RegisterRecipe",
    "RegionLabelRecipe",
    "RejectShare",
    "SceneFiles",
    "SceneSeries",
    "SourceRecipe",
    "SplitRecipe",
    "StacQuery",
    "StacSource",
    "TableLabels",
    "TileRecipe",
    "TimmWeights",
    "TrainRecipe",
    "VectorLabels",
    "Weights",
]

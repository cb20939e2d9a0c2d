"""Maps: one seamless raster out of a model's overlapping tiles, in memory that the width of the scene sets."""

from vitpipe.infer.mapping.cover import Blend
from vitpipe.infer.mapping.layers import ClassLayers, Layers, MapFile, ValueLayers
from vitpipe.infer.mapping.scene import MapMade, MapTask, make_files, make_map
from vitpipe.infer.mapping.stitching import MapPlan, MapRows, stitch
from vitpipe.infer.mapping.symmetry import PixelModel

__all__ = [
    "Blend",
    "ClassLayers",
    "Layers",
    "MapFile",
    "MapMade",
    "MapPlan",
    "MapRows",
    "MapTask",
    "PixelModel",
    "ValueLayers",
    "make_files",
    "make_map",
    "stitch",
]

"""Maps: one seamless raster or stack out of a model's overlapping tiles, in memory that a row or layer of them sets."""

from vitpipe.infer.mapping.cover import Blend
from vitpipe.infer.mapping.layers import ClassLayers, Layers, MapFile, ValueLayers
from vitpipe.infer.mapping.scene import MapMade, MapTask, make_files, make_map
from vitpipe.infer.mapping.stacks import StackFrame, stitch_stack
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
    "StackFrame",
    "ValueLayers",
    "make_files",
    "make_map",
    "stitch",
    "stitch_stack",
]

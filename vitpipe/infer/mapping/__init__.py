"""Maps: one seamless raster out of a model's overlapping tiles, in memory that the width of the scene sets."""

from vitpipe.infer.mapping.cover import Blend
from vitpipe.infer.mapping.stitch import MapPlan, MapRows, stitch
from vitpipe.infer.mapping.symmetry import PixelModel

__all__ = ["Blend", "MapPlan", "MapRows", "PixelModel", "stitch"]

"""Tiles on the ground: where they lie, what splits share, how far apart they are, and how large blocks must be."""

from vitpipe.ground.audit import ground_audit
from vitpipe.ground.footprints import Footprints, tile_footprints
from vitpipe.ground.spacing import distance_to_train, left_out

__all__ = ["Footprints", "distance_to_train", "ground_audit", "left_out", "tile_footprints"]

"""Judging models that say something of every pixel: the same numbers, intervals, baselines and gate as for tiles.

Read in this order: `tables` (what the training left), `sums` (metrics as functions of sums), `assess` (intervals),
`evaluation` (every number), `contest` (champion and challenger), `report`.
"""

"""Judging a model: honest numbers at every level, beside trivial baselines, and the gate of a new version.

Read in this order: `calibration` (from logits to probabilities and sets), `units` (tiles pooled to levels), `metrics`
(numbers from per-group sums), `statistics` (intervals), `subgroups`, `gate`, `evaluation` (the stage), `report`.
"""

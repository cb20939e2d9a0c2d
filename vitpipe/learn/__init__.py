"""Learning: from a manifest and its tiles to a trained model, in a child process that can be killed at any time.

The record moves so: `task` (what to learn, digested) -> `launch` (starts the child) -> `child` -> `preprocessing`,
`loader`, `augment` -> `architecture`, `weights` -> `fit` or `probe`, `checkpoint` -> `model` (what is kept and used).
"""

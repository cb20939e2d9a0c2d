"""Prediction on raw files and arrays, from a package folder alone: safetensors and JSON, no registry, no workspace."""

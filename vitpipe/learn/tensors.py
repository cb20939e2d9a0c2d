"""Tensors to a safetensors file, with the system's refusal as the error that it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors, from any device, as a safetensors file.

    Raises:
        OSError: the disk is full or cannot be written; safetensors itself hides the number in a text.
    """
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        if found := _SYSTEM_ERROR.search(str(error)):
            raise OSError(int(found[1]), str(error), str(path)) from error
        raise

"""Filters that were learnt for some channels, placed on the channels at hand: by name, never by chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

RGB = ("red", "green", "blue")
_COLOURS = {"r": "red", "g": "green", "b": "blue", "red": "red", "green": "green", "blue": "blue"}
# Sentinel-2's and HLS's names. Landsat 4-7 have red as B3: an unpadded B4 is red only beside bands that they lack.
_PADDED = {"b04": "red", "b03": "green", "b02": "blue"}
_UNPADDED = {"b4": "red", "b3": "green", "b2": "blue"}
_NOT_LANDSAT_7 = frozenset({"b8a", "b9", "b09", "b10", "b11", "b12"})


def colour_names(channels: Sequence[str]) -> list[str]:
    """Give channel names in lower case, bands that are true red, green or blue by their colour."""
    names = [name.strip().lower() for name in channels]
    known = _COLOURS | _PADDED
    if _NOT_LANDSAT_7 & set(names):
        known |= _UNPADDED
    return [known.get(name, name) for name in names]


def adapt_channels(weight: torch.Tensor, known: Sequence[str], channels: Sequence[str]) -> tuple[torch.Tensor, str]:
    """Make first-layer filters for `channels` of filters that were learnt for `known`.

    - One channel from three colours: their sum, exact for grey that is shown as three equal colours.
    - A channel of the same name (or colour) takes its own filter; any other takes the mean of all filters divided by
      the number of channels; where no channel has a filter of its own, mean * len(known) / C keeps the response to a
      constant image (timm's tiling keeps it too, but gives bands the filters of unrelated colours).
    - Three channels without colour names onto three colours: by position, and said so.

    Args:
        weight: (O, len(known), h, w).
        known: channel names of the weights.
        channels: channel names of the tiles.

    Returns:
        Filters (O, len(channels), h, w) and a sentence on what was done.
    """
    have, want = colour_names(known), colour_names(channels)
    if have == want:
        return weight, "the weights know these channels"
    if len(want) == 1 and len(have) == 3 and set(have) == set(RGB):
        return weight.sum(1, keepdim=True), "one channel: the sum of the red, green and blue filters"
    matched = {name: have.index(name) for name in want if name in have}
    if not matched and len(want) == len(have) == 3:
        return weight, f"the channels {', '.join(channels)} are taken as {', '.join(have)}, by position"
    share = 1.0 if matched else float(len(have))
    spread = weight.double().mean(1) * (share / len(want))
    filters = [weight[:, matched[name]] if name in matched else spread.to(weight.dtype) for name in want]
    placed = [name for name, colour in zip(channels, want, strict=True) if colour in matched]
    others = [name for name, colour in zip(channels, want, strict=True) if colour not in matched]
    parts = [f"{', '.join(placed)} take the filters of their own name"] if placed else []
    if others:
        parts.append(f"{', '.join(others)} take the mean of all filters, scaled")
    return torch.stack(filters, 1), "; ".join(parts)

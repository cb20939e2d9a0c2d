"""Classes have the colours that maps of land cover have, and no two the same."""

from __future__ import annotations

from vitpipe.evaluate.palette import Colour, colours


def hue(colour: Colour) -> str:
    red, green, blue = colour
    if max(colour) - min(colour) < 45:
        return "grey"
    if min(red, green) > blue + 60 and 0 <= red - green < 60:
        return "yellow"
    return ("red", "green", "blue")[colour.index(max(colour))]


def test_land_cover_has_its_natural_colours() -> None:
    named = {
        "water": "blue", "SeaLake": "blue", "River": "blue", "Forest": "green", "dense_trees": "green", "urban": "red",
        "Built-up": "red", "Residential": "red", "AnnualCrop": "yellow", "cropland": "yellow", "Pasture": "green",
        "barren": "grey", "bare soil": "grey", "Highway": "grey", "herbaceous": "green", "WATER": "blue",
    }  # fmt: skip
    for name, wanted in named.items():
        assert hue(colours([name])[0]) == wanted, name


def test_no_two_classes_look_the_same_and_order_does_not_matter_to_names() -> None:
    names = ["river", "sea", "lake", "pond", "canal", "ocean", "a", "b", *map(str, range(240))]
    found = colours(names)
    assert len(set(found)) == len(found)
    assert colours(["forest", "water"]) == colours(["water", "forest"])[::-1]
    assert colours(names) == found


def test_what_a_name_denies_or_does_not_know_is_of_the_fixed_list() -> None:
    assert colours(["non-forest", "other water", "1"]) == colours(["a", "b", "c"])
    # A wooden word inside another one is none.
    assert colours(["seasonal", "icecream"]) == colours(["a", "b"])
    # The list leaves out what would look like a colour that a name has.
    assert colours(["x", "y", "bare", "forest"])[:2] == colours(["x", "y"])

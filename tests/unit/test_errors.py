"""Names that were likely meant."""

from __future__ import annotations

import pytest

from simspine_jax.errors import UnknownNameError, listed, misspelt, nearest

MARKERS = ("Sternum", "R.ASIS", "L.ASIS", "R.Knee.Lat", "LKnee", "T10", "HeelR")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Stern", "Sternum"),
        ("sternum", "Sternum"),
        ("RASIS", "R.ASIS"),
        ("l_asis", "L.ASIS"),
        ("force", None),
    ],
)
def test_the_nearest_name_is_told_before_the_list(name: str, near: str | None) -> None:
    assert nearest(name, MARKERS) == near
    told = str(UnknownNameError("Marker", name, "walk.trc", MARKERS))
    has = "it has: Sternum" if near is None else f"did you mean '{near}'? It has: Sternum"
    assert told.startswith(f"Marker '{name}' is not in walk.trc; {has}, R.ASIS")


def test_names_that_can_not_be_seen_are_escaped_and_long_ones_cut() -> None:
    told = str(UnknownNameError("Camera", "b\x92 \n" + 900 * "h", "a.csv", ["cam\ufeff"]))
    assert told.startswith("Camera 'b\\x92 \\nhhh")
    assert told.endswith("h…' is not in a.csv; it has: cam\\ufeff")
    assert len(told) < 400


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RASIS", "R.ASIS"),
        ("Sternm", "Sternum"),
        ("STERNUM", "Sternum"),
        ("RKnee", None),  # another side
        ("T12", None),  # another number
        ("Heel", None),  # either side
        ("Knee", None),
    ],
)
def test_sides_and_numbers_are_no_slips(name: str, meant: str | None) -> None:
    assert misspelt(name, MARKERS) == meant


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"

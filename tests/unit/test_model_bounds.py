"""Ranges of the free coordinates, with what clamped coordinates that follow them add."""

import math

import numpy as np
import pytest

from simspine_jax.io.sidecar import Affine, CoordinateDescription, ModelDescription
from simspine_jax.kinematics.model import _free_bounds


def described(*followers: tuple[Affine, float, float, bool]) -> ModelDescription:
    """A free coordinate within [-1, 2], a free one without range, and coordinates that follow them."""
    own = [("a", -1.0, 2.0, True), ("b", -9.0, 9.0, False)]
    free = [
        CoordinateDescription(
            name, "j", "rotational", "free", 0.0, low, high, clamped, False, Affine(0, {name: 1})
        )
        for name, low, high, clamped in own
    ]
    coupled = [
        CoordinateDescription(f"f{i}", "j", "rotational", "coupled", 0.0, low, high, clamped, False, value)
        for i, (value, low, high, clamped) in enumerate(followers)
    ]
    return ModelDescription(
        "m", "m.xml", "m.osim", "0" * 64, "4.6", (0, 0, 0), (*free, *coupled), (), (), (), ()
    )


FREE = (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("followers", "a", "b"),
    [
        ([], (-1, 2), FREE),
        ([(Affine(0.5, {"a": 2.0}), -0.5, 1.5, True)], (-0.5, 0.5), FREE),
        ([(Affine(0.0, {"b": -0.5}), -1.0, 3.0, True)], (-1, 2), (-6, 2)),
        (
            [(Affine(0.0, {"b": 1.0}), -1, 3, True), (Affine(1.0, {"b": 1.0}), 0.5, 5, True)],
            (-1, 2),
            (-0.5, 3),
        ),
        ([(Affine(0.0, {"b": 1.0}), -1.0, 3.0, False)], (-1, 2), FREE),
        ([(Affine(0.0, {"a": 1.0}), 3.0, 4.0, True)], (-1, 2), FREE),
        ([(Affine(0.0, {"a": 1.0, "b": 1.0}), -0.1, 0.1, True)], (-1, 2), FREE),
        ([(Affine(0.0, {"a": 1.0}, {"curve": 1.0}), -0.1, 0.1, True)], (-1, 2), FREE),
        ([(Affine(0.0, {"b": 1.0}), 1.0, -1.0, True)], (-1, 2), FREE),
    ],
    ids=[
        "none",
        "linear",
        "reversed",
        "both",
        "not clamped",
        "no value left",
        "of two",
        "curved",
        "inverted",
    ],
)
def test_a_clamped_follower_bounds_what_it_follows(followers, a, b) -> None:
    lower, upper = _free_bounds(described(*followers))
    np.testing.assert_allclose(list(zip(lower, upper, strict=True)), [a, b], rtol=1e-12)

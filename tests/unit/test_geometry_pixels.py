"""One rule for what is inside a picture, in clips, rendered pictures and crops."""

from __future__ import annotations

import numpy as np
import pytest
from spine_trials import make_trial

from simspine_jax.clips import clips_of
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.pixels import in_picture
from simspine_jax.skeleton import N_KEYPOINTS


def test_a_point_is_inside_where_its_pixel_is() -> None:
    """The pixel whose middle is nearest is one of the picture's."""
    width, height = 7, 5
    random = np.random.default_rng(0)
    points = random.uniform((-2, -2), (9, 7), (2000, 2))
    column, row = np.rint(points).astype(int).T
    held = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    assert 0.2 < held.mean() < 0.8
    np.testing.assert_array_equal(in_picture(points, (width, height)), held)
    assert not in_picture(np.array([np.nan, 1.0]), (width, height))
    assert in_picture(np.array([1e6, -1e6]), np.full(2, np.nan))


@pytest.mark.parametrize(("x", "inside"), [(-0.6, False), (-0.4, True), (9.4, True), (9.6, False)])
def test_clips_and_crops_have_the_same_edges(x: float, inside: bool) -> None:
    """A keypoint at ``x`` of a picture of 10 px, 1 m in front of a camera whose focal length is 1 px."""
    facing = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    camera = Cameras(
        facing[None], np.array([[0, 0, 1.0]]), np.ones((1, 2)), np.zeros((1, 2)), np.zeros(1),
        np.zeros((1, 8)), np.full((1, 2), 10.0), ("one",),
    )  # fmt: skip
    keypoints = np.zeros((2, N_KEYPOINTS, 3))
    keypoints[..., 2] = x  # ground's Z is the camera's x
    (clip,) = clips_of(
        make_trial(n_frames=2, events=(), keypoints=keypoints, camera_names=(), reprojection_px=None),
        camera,
    )
    np.testing.assert_allclose(clip.keypoints_2d[..., 0], x, atol=1e-6)
    assert (clip.keypoints_2d_mask == inside).all()
    assert in_picture(np.array([x, 0]), (10, 10)) == inside

"""Synthetic camera rigs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from simspine_jax.capture.rigs import make_rig
from simspine_jax.geometry.cameras import camera_centers, project


def test_cameras_stand_in_the_corners_and_look_at_the_person():
    for seed in range(20):
        rig = make_rig(seed)
        np.testing.assert_allclose(np.linalg.det(rig.rotations), 1, atol=1e-12)
        np.testing.assert_allclose(
            rig.rotations @ np.swapaxes(rig.rotations, 1, 2),
            np.broadcast_to(np.eye(3), (4, 3, 3)),
            atol=1e-12,
        )
        centers = np.asarray(camera_centers(rig))
        assert ((np.linalg.norm(centers, axis=1) > 5) & (np.linalg.norm(centers, axis=1) < 6.2)).all()
        assert (np.abs(centers[:, 2] - 1.5) < 0.6).all()
        assert len({tuple(corner) for corner in np.sign(centers[:, :2])}) == 4
        # A tall person in the middle, arms out, is in every picture with head up.
        body = np.array(
            [[0, 0, 0.0], [0, 0, 1.9], [0.9, 0, 1.4], [-0.9, 0, 1.4], [0, 0.9, 1.4], [0, -0.9, 1.4]]
        )
        picture = project(rig, jnp.asarray(body))
        assert (np.asarray(picture.depth) > 3).all()
        keypoints = np.asarray(picture.keypoints)
        assert ((keypoints > 0) & (keypoints < rig.sizes)).all()
        assert (keypoints[1, :, 1] < keypoints[0, :, 1] - 250).all()


def test_rigs_differ_by_seed_alone():
    one, again, other = make_rig((3, 1)), make_rig((3, 1)), make_rig((3, 2))
    np.testing.assert_array_equal(one.rotations, again.rotations)
    np.testing.assert_array_equal(one.distortion, again.distortion)
    assert not np.allclose(one.rotations, other.rotations)

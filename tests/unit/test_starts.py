"""Cold starts: the whole model moved onto the markers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import simspine_jax as ssj
from simspine_jax.kinematics.forward import scaled_frames
from simspine_jax.kinematics.residuals import Slice
from simspine_jax.kinematics.starts import align_root, cold_starts


@pytest.fixture(scope="module")
def data(spine_model):
    """Markers of three random poses anywhere, a few of them without weight."""
    key = jax.random.key(5)
    n, k = spine_model.n_free, spine_model.n_markers
    q = 0.6 * jax.random.normal(key, (3, n), jnp.float64)
    weights = jnp.where(jnp.arange(k) % 7 == 3, 0.0, 1.0)
    return Slice(
        jnp.moveaxis(ssj.forward_kinematics(spine_model, q).markers, 0, -1),
        jnp.tile((weights / weights.sum())[:, None], (1, 3)),
        jnp.zeros((0, 3)),
        jnp.zeros(0),
        scaled_frames(spine_model, None, None, jnp.float64),
    )


def test_the_model_is_turned_as_an_independent_alignment_turns_it(spine_model, data):
    start = spine_model.start_q[0]
    before = ssj.forward_kinematics(spine_model, start)
    aligned = align_root(spine_model, data, jnp.broadcast_to(start[:, None], (len(start), 3))).T
    after = ssj.forward_kinematics(spine_model, aligned)
    weights = np.asarray(data.weights[:, 0])
    pelvis = spine_model.body_names.index("pelvis")
    for frame in range(3):
        targets = np.asarray(data.targets[..., frame])
        centred = [x - weights @ x for x in (targets, np.asarray(before.markers))]
        expected, _ = Rotation.align_vectors(*centred, weights=weights)
        turned = after.body_rotations[frame, pelvis] @ before.body_rotations[pelvis].T
        np.testing.assert_allclose(turned, expected.as_matrix(), atol=1e-9)
        # Not only turned but moved: the weighted means coincide.
        np.testing.assert_allclose(weights @ np.asarray(after.markers[frame]), weights @ targets, atol=1e-12)


def test_the_inner_joints_keep_their_start(spine_model, data):
    root = spine_model.root
    inner = np.setdiff1d(np.arange(spine_model.n_free), [*root.hinges, *root.slides])
    found = cold_starts(spine_model, data)
    assert found.shape == (len(spine_model.start_q), spine_model.n_free, 3)
    expected = np.broadcast_to(spine_model.start_q[:, inner, None], found[:, inner].shape)
    np.testing.assert_allclose(found[:, inner], expected, atol=1e-15)

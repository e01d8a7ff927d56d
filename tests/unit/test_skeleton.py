"""The vocabulary against SpineTrack's published format, the paper's counts and the OpenSim model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simspine_jax import skeleton
from simspine_jax.errors import UnknownNameError
from simspine_jax.io.marker_set import read_marker_set
from simspine_jax.io.sidecar import read_sidecar


@pytest.fixture(scope="module")
def published(shared_data):
    return json.loads((shared_data / "spinetrack_format.json").read_text(encoding="utf-8"))


def test_names_sigmas_partners_and_links_are_spinetracks(published):
    assert list(skeleton.KEYPOINT_NAMES) == published["names"]
    assert published["n_keypoints"] == skeleton.N_KEYPOINTS
    np.testing.assert_array_equal(skeleton.SIGMAS, published["sigmas"])
    for name, partner in zip(skeleton.KEYPOINT_NAMES, skeleton.SWAP, strict=True):
        assert skeleton.KEYPOINT_NAMES[partner] == published["swap"].get(name, name)
    links = [[skeleton.KEYPOINT_NAMES[i] for i in pair] for pair in skeleton.LINKS]
    assert links == published["links"]


def test_the_release_order_maps_to_keypoints(published):
    assert list(skeleton.RELEASE_MARKER_NAMES) == published["simspine_marker_order"]
    assert skeleton.RELEASE_TO_KEYPOINT.tolist() == published["simspine_to_spinetrack_index"]


def test_the_oks_spine_subset_is_the_vertebral_column(published):
    assert skeleton.OKS_SUBSETS["spine"] == (36, 35, 18, 30, 29, 28, 27, 26, 19)
    assert {skeleton.KEYPOINT_NAMES[i] for i in skeleton.OKS_SUBSETS["spine"]} == set(published["spine9"])


def test_regions_have_the_papers_counts_and_partition_the_keypoints():
    counts = {"cervical": 5, "thoracic": 6, "lumbar": 4, "spine": 15, "body": 22, "all": 37}
    assert {name: len(ids) for name, ids in skeleton.REGIONS.items()} == counts
    parts = [skeleton.REGIONS[name] for name in ("cervical", "thoracic", "lumbar", "body")]
    assert sorted(i for part in parts for i in part) == list(range(37))


def test_the_reduced_release_is_the_spine_region():
    assert set(skeleton.REDUCED_IDS.tolist()) == set(skeleton.REGIONS["spine"])
    assert skeleton.REDUCED_PARENTS.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 5, 4, 4]


def test_swapping_twice_changes_nothing_and_keeps_the_tree():
    swap, parents = skeleton.SWAP, skeleton.PARENTS
    np.testing.assert_array_equal(swap[swap], np.arange(37))
    rooted = parents >= 0
    np.testing.assert_array_equal(parents[swap][rooted], swap[parents][rooted])


def test_every_keypoint_hangs_from_the_hip():
    root = skeleton.KEYPOINT_NAMES.index("hip")
    for i in range(37):
        steps = 0
        while skeleton.PARENTS[i] >= 0:
            i, steps = skeleton.PARENTS[i], steps + 1
            assert steps < 37
        assert i == root


def test_names_translate_both_ways():
    for name, trc in zip(skeleton.KEYPOINT_NAMES, skeleton.TRC_NAMES, strict=True):
        assert skeleton.trc_name(name) == trc
        assert skeleton.keypoint_name(trc) == name
    assert skeleton.trc_name("left_big_toe") == "LBigToe"
    with pytest.raises(
        UnknownNameError, match=r"Keypoint 'LShoulder' is not in the vocabulary; .* has: nose"
    ):
        skeleton.trc_name("LShoulder")
    with pytest.raises(UnknownNameError, match="Marker 'C7' is not in the vocabulary; it has: Nose"):
        skeleton.keypoint_name("C7")


def test_constants_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        skeleton.SIGMAS[0] = 1.0
    with pytest.raises(TypeError):
        skeleton.REGIONS["body"] = ()  # type: ignore[index]


def test_axes_are_the_models_coordinates_in_its_order(spine_model):
    assert spine_model.coordinate_names == skeleton.AXIS_NAMES
    assert len(set(skeleton.AXIS_NAMES)) == 62
    for level in skeleton.LUMBAR_LEVELS:
        assert all(f"{level}_{motion}" in skeleton.AXIS_NAMES for motion in skeleton.LUMBAR_MOTIONS)


def test_axis_joints_are_the_models(spine_osim, tmp_path):
    osim2mjcf = pytest.importorskip("osim2mjcf", reason="OpenSim is not installed")
    converted = osim2mjcf.convert(spine_osim, tmp_path / "spine.xml")
    coordinates = read_sidecar(converted.with_suffix(".json")).coordinates
    assert tuple(c.joint for c in coordinates) == skeleton.AXIS_JOINTS


def test_the_paper_places_33_markers_on_bodies_of_the_model(spine_model):
    names = [m.name for m in skeleton.PAPER_MARKERS]
    without = {"LEye", "REye", "LEar", "REar"}
    assert names == [name for name in skeleton.RELEASE_MARKER_NAMES if name not in without]
    assert {m.body for m in skeleton.PAPER_MARKERS} <= set(spine_model.body_names)
    assert tuple(names) == spine_model.marker_names


def test_left_markers_mirror_the_right_but_for_the_clavicle():
    markers = {m.name: m for m in skeleton.PAPER_MARKERS}
    for name, right in markers.items():
        if name.startswith("R"):
            left = markers["L" + name[1:]]
            x, y, z = right.location
            mirrored = (0.029778, 0.371409, -z) if name == "RClavicle" else (x, y, -z)
            assert left.location == mirrored
            assert left.body == right.body.removesuffix("_r") + ("_l" if right.body.endswith("_r") else "")


def test_official_weights_cover_the_markers_and_name_a_coordinate():
    weights = skeleton.OFFICIAL_MARKER_WEIGHTS
    assert set(weights) == {m.name for m in skeleton.PAPER_MARKERS}
    expected = {"LShoulder": 2.0, "Hip": 1.0, "LHeel": 1.0, "Neck_02": 0.5, "Spine_01": 0.5, "Head": 0.3}
    expected |= {"RClavicle": 0.3, "LLatissimus": 0.3, "Nose": 0.1, "RHip": 2.0, "LElbow": 1.0}
    assert {name: weights[name] for name in expected} == expected
    (task,) = skeleton.OFFICIAL_COORDINATE_TASKS
    assert task == ("L5_S1_Flex_Ext", 0.0, 1.0)
    assert task.coordinate in skeleton.AXIS_NAMES


def test_the_marker_set_reads_back(tmp_path):
    skeleton.write_paper_marker_set(tmp_path / "markers.xml")
    markers = read_marker_set(tmp_path / "markers.xml")
    assert [(m.name, m.body, m.location) for m in markers] == list(skeleton.PAPER_MARKERS)

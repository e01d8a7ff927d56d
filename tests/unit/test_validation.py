"""Statistics, tables and their formats, against NumPy over all frames at once."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import weakref
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spine_trials import CAMERAS, MARKERS, bare_trial, lost_trial, make_set, make_trial, unseen_trial

from simspine_jax import expand_coordinates
from simspine_jax import reference_values as reference
from simspine_jax.annotations import GAP_FILLED, REASONS, Quality, QualityEvent, SpineTrial
from simspine_jax.capture import capture_trial, make_subject
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS, keypoint_curvature
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS
from simspine_jax.statistics import (
    BIN,
    SYNTHETIC_NOTICE,
    UNSEEN_NOTICE,
    Tally,
    action_name,
    back_share,
    gather_statistics,
    in_fixed_ratios,
    seen_names,
    spine_angles,
    spine_words,
)
from simspine_jax.tables import TABLE_FORMATS, Table, format_table
from simspine_jax.validation import (
    FIXED_RATIOS,
    curvature_table,
    flexion_gradient_table,
    lumbar_motion_table,
    neck_coverage_table,
    neck_table,
    quality_table,
    reference_table,
    truth_table,
    validation_tables,
)

# Sums of some thousand numbers up to 400 in float64.
ROUNDING = 1e-8
# A percentile is the middle of the bin that holds it.
HALF_BIN = BIN / 2 + 1e-9

numbers = st.lists(st.floats(-400, 400), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def trials():
    return make_set()


@pytest.fixture(scope="module")
def statistics(trials):
    return gather_statistics(iter(trials))


def usable(trials, field, index=()):
    return np.rad2deg(np.concatenate([getattr(t, field)[t.usable][(slice(None), *index)] for t in trials]))


def robust(values):
    return np.subtract(*np.percentile(values, [95, 5]))


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


@settings(max_examples=150, deadline=None)
@given(numbers, st.floats(0, 100))
def test_a_tally_is_numpys(values, percent):
    tally, values = Tally.of(np.array(values)), np.array(values)
    assert (tally.count, tally.low, tally.high) == (len(values), values.min(), values.max())
    assert tally.mean == pytest.approx(values.mean(), abs=ROUNDING)
    assert tally.sd == pytest.approx(values.std(), abs=ROUNDING)
    assert tally.percentile(percent) == pytest.approx(np.percentile(values, percent), abs=HALF_BIN)
    middles, counts = tally.histogram()
    assert counts.sum() == len(values)
    assert (counts > 0).all()
    np.testing.assert_allclose(np.repeat(middles, counts), np.sort(values), atol=HALF_BIN)


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.floats(0, 100))
def test_tallies_add_up(one, two, percent):
    both = Tally.of(np.array(one)) + Tally.of(np.array(two))
    whole = Tally.of(np.array(one + two))
    for name in ("count", "mean", "squares", "low", "high", "first"):
        assert getattr(both, name) == pytest.approx(getattr(whole, name), abs=1e-6), name
    np.testing.assert_array_equal(both.bins, whole.bins)
    assert both.percentile(percent) == whole.percentile(percent)


def test_what_is_missing_is_not_counted():
    tally = Tally.of(np.array([[np.nan, 2.0], [np.inf, 4.0]]))
    assert (tally.count, tally.mean, tally.sd) == (2, 3.0, 1.0)
    empty = Tally.of(np.full(3, np.nan))
    assert math.isnan(empty.sd)
    assert math.isnan(empty.percentile(50))
    assert (empty + tally) is tally
    assert (tally + empty) is tally


def test_a_wild_number_takes_no_memory():
    tally = Tally.of(np.array([1.0, 2.0, 1e12, -1e12]))
    assert len(tally.bins) <= 2 * 5000 / BIN + 1
    assert (tally.low, tally.high) == (-1e12, 1e12)
    assert tally.percentile(50) == pytest.approx(1.5, abs=HALF_BIN)


def test_trials_are_read_once_and_let_go(statistics):
    seen = []

    def one_by_one():
        for subject, n_frames in (("S11", 30), ("S9", 40), ("S1", 55)):
            for action in ("Walking 1", "Walking 2", "Sitting", "Directions"):
                # The reader's loop still holds the last one.
                assert all(ref() is None for ref in seen[:-1])
                trial = make_trial(subject, action, n_frames)
                seen.append(weakref.ref(trial))
                yield trial
                del trial

    found = gather_statistics(one_by_one())
    assert len(seen) == 12
    assert found.whole.curvature["lordosis"].mean == statistics.whole.curvature["lordosis"].mean


def test_no_trials_are_refused():
    with pytest.raises(ShapeError, match="no trials; valid is at least one"):
        gather_statistics([])


@pytest.mark.parametrize(("by", "names"), [
    ("action", ["Directions", "Sitting", "Walking"]), ("subject", ["S1", "S9", "S11"]),
])  # fmt: skip
def test_curvature_is_numpys_over_usable_frames(trials, statistics, by, names):
    table = curvature_table(statistics, by)
    assert [row[0] for row in table.rows] == [*names, "All frames", "Mean of the rows"]
    fields = {"Lordosis by keypoints": "lordosis", "Kyphosis by keypoints": "kyphosis",
              "Lordosis by bodies": "body_lordosis", "Kyphosis by bodies": "body_kyphosis"}  # fmt: skip
    for label, field in fields.items():
        groups = [[t for t in trials if action_name(getattr(t, by)) == name] for name in names]
        values = [usable(group, field) for group in groups] + [usable(trials, field)]
        for what, of in (("mean", np.mean), ("SD", np.std)):
            expected = [of(v) for v in values]
            found = column(table, f"{label}: {what} (°)")
            np.testing.assert_allclose(found[:-1], expected, atol=ROUNDING)
            assert found[-1] == pytest.approx(np.mean(expected[:-1]), abs=ROUNDING)
    counts = column(table, "Usable frames")
    assert counts[:-1] == [len(v) for v in values]
    assert counts[-1] is None
    assert "Only usable frames are counted" in table.notes[0]


def test_frames_that_are_not_usable_change_nothing(trials, statistics):
    def spoiled(trial):
        bad = ~trial.usable
        assert bad.any()
        fields = {}
        for name in ("lordosis", "kyphosis", "body_lordosis", "vertebral_rotations", "residuals"):
            values = getattr(trial, name).copy()
            values[bad] = 3.0
            fields[name] = values
        return dataclasses.replace(trial, **fields)

    again = gather_statistics(map(spoiled, trials))
    for one, two in zip(validation_tables(statistics), validation_tables(again), strict=True):
        assert format_table(one, "csv") == format_table(two, "csv")


def test_lumbar_ranges_are_numpys_percentiles(trials, statistics):
    table = lumbar_motion_table(statistics, unverified=True)
    assert len(table.rows) == 18
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        level = {level_label(name): name for name in LUMBAR_LEVELS}[cells["Level"]]
        where = (VERTEBRAL_LEVELS.index(level), MOTIONS.index(cells["Motion"]))
        values = usable(trials, "vertebral_rotations", where)
        # Two percentiles of half a bin each.
        assert cells["5 to 95 % (°)"] == pytest.approx(robust(values), abs=2 * HALF_BIN)
        assert cells["Min to max (°)"] == pytest.approx(np.ptp(values), abs=ROUNDING)
        subjects = [
            robust(usable([t for t in trials if t.subject == s], "vertebral_rotations", where))
            for s in ("S1", "S9", "S11")
        ]
        mean = cells["5 to 95 %, mean of subjects (°)"]
        assert mean == pytest.approx(np.mean(subjects), abs=2 * HALF_BIN)
        one_side = cells["Motion"] != "flexion/extension"
        assert cells["Compared (°)"] == pytest.approx(cells["5 to 95 % (°)"] / (2 if one_side else 1))
        assert cells["Arc compared"] == ("one side" if one_side else "whole arc")
        known = reference.LUMBAR_ROM[level, cells["Motion"]]
        assert (cells["Reference (°)"], cells["Status of reference"]) == (known.degrees[0], known.status)


def test_shares_add_up_to_a_hundred(statistics):
    table = flexion_gradient_table(statistics, unverified=True)
    ranges = np.array(column(table, "5 to 95 % (°)"))
    np.testing.assert_allclose(column(table, "Share (%)"), 100 * ranges / ranges.sum())
    for name in ("Reference share (%)", "Share by the model's couplers (%)"):
        assert sum(column(table, name)) == pytest.approx(100)
    # The couplers: 1.8571 of 7.1428.
    assert column(table, "Share by the model's couplers (%)")[1] == pytest.approx(26.0, abs=0.01)


def test_the_neck_is_numpys(trials, statistics):
    table, coverage = neck_table(statistics), neck_coverage_table(statistics, unverified=True)
    sitting = [t for t in trials if t.action == "Sitting"]
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert row["Action"] == "Sitting"
    for i, (word, sides) in enumerate((("Flexion", 1), ("Bending", 2), ("Rotation", 2))):
        values = usable(sitting, "vertebral_rotations", (6, i))
        assert row[f"{word}: 5 to 95 % (°)"] == pytest.approx(robust(values), abs=2 * HALF_BIN)
        assert row[f"{word}: lowest (°)"] == pytest.approx(values.min(), abs=ROUNDING)
        assert row[f"{word}: highest (°)"] == pytest.approx(values.max(), abs=ROUNDING)
        whole = np.ptp(usable(trials, "vertebral_rotations", (6, i))) / sides
        cells = dict(zip(coverage.columns, coverage.rows[i], strict=True))
        assert cells["Min to max (°)"] == pytest.approx(whole, abs=ROUNDING)
        assert cells["Min to max of reference (%)"] == pytest.approx(100 * whole / cells["Reference (°)"])


def test_quality_counts_frames_and_faults(trials, statistics):
    table = quality_table(statistics, "action")
    walking = [t for t in trials if t.action.startswith("Walking")]
    row = dict(zip(table.columns, table.rows[2], strict=True))
    frames = sum(t.n_frames for t in walking)
    assert (row["Action"], row["Trials"], row["Frames"]) == ("Walking", 6, frames)
    assert row["Usable"] == sum(sum(Quality(int(q)).usable for q in t.quality) for t in walking)
    assert row["Usable (%)"] == pytest.approx(100 * row["Usable"] / frames)
    # Five frames with one fault and one of them with another, two repaired, in each of six trials.
    names = ("Marker residual: after", "Curvature: after", "Repaired", "No pose: after")
    assert [row[name] for name in names] == [30, 6, 12, 0]
    assert table.rows[-1][:3] == ("All", 12, sum(t.n_frames for t in trials))


def test_errors_by_camera_and_marker(trials, statistics):
    assert tuple(statistics.reprojection_px) == CAMERAS
    pixels = np.concatenate([t.reprojection_px[t.usable, 1].ravel() for t in trials])
    assert statistics.reprojection_px["right"].percentile(50) == pytest.approx(
        np.median(pixels), abs=HALF_BIN
    )
    assert tuple(statistics.residuals_mm) == MARKERS
    assert statistics.residuals_mm["never"].count == 0
    residuals = 1000 * np.concatenate([t.residuals[t.usable, 0] for t in trials])
    assert statistics.residuals_mm["C7"].mean == pytest.approx(residuals.mean(), abs=ROUNDING)


def test_what_the_release_lacks_is_computed_or_missing():
    trial = bare_trial()
    angles = spine_angles(trial)
    expected = keypoint_curvature(trial.keypoints)
    np.testing.assert_allclose(angles.lordosis, np.rad2deg(expected.lordosis), atol=ROUNDING)
    np.testing.assert_allclose(angles.kyphosis, np.rad2deg(expected.kyphosis), atol=ROUNDING)
    assert np.isnan(angles.body_lordosis).all()
    for i, level in enumerate(LUMBAR_LEVELS):
        names = [AXIS_NAMES.index(f"{level}_{motion}") for motion in LUMBAR_MOTIONS]
        np.testing.assert_array_equal(angles.rotations[:, i], np.rad2deg(trial.coordinates[:, names]))
    neck = [AXIS_NAMES.index(name) for name in ("neck_flexion", "neck_bending", "neck_rotation")]
    np.testing.assert_array_equal(angles.rotations[:, -1], np.rad2deg(trial.coordinates[:, neck]))
    table = curvature_table(gather_statistics([trial]), "action")
    assert len(table.rows) == 1
    assert math.isnan(column(table, "Lordosis by bodies: mean (°)")[0])
    assert "Lordosis by bodies: not known in 40 usable frames." in table.notes


def test_long_trials_are_computed_in_blocks():
    """One frame more than a block: equal to the same frames alone."""
    frames = np.random.default_rng(0).normal(size=(2049, 37, 3))
    n = len(frames)
    trial = SpineTrial("S1", "x", np.arange(n) / 50, 50, frames, np.zeros((n, 62)), np.zeros(n, np.uint16))
    lordosis = spine_angles(trial).lordosis
    assert lordosis.shape == (n,)
    some = [0, 2047, 2048]
    np.testing.assert_allclose(
        lordosis[some], np.rad2deg(keypoint_curvature(frames[some]).lordosis), atol=1e-6
    )


def test_nothing_usable_gives_tables_with_gaps():
    statistics = gather_statistics([lost_trial()])
    for table in validation_tables(statistics):
        for kind in TABLE_FORMATS:
            assert not re.search(r"\bnan\b", format_table(table, kind), re.IGNORECASE)
    assert (
        statistics.source == "1 trial of 1 subject, 0 of 40 frames usable, from a source that is not stated"
    )


def test_synthetic_truth_comes_out(spine_model):
    """The capture's own curvature; and its coupled lumbar joints share flexion as the couplers say."""
    c = jax.tree.map(
        np.asarray, capture_trial(spine_model, make_subject(spine_model, "S5"), "Sitting", 2.0, 25.0)
    )
    trial = SpineTrial(
        "S5", "Sitting", c.times, 25.0, c.keypoints, c.coordinates, np.zeros(50, np.uint16),
        body_lordosis=c.body_curvature.lordosis, body_kyphosis=c.body_curvature.kyphosis, source="capture",
    )  # fmt: skip
    statistics = gather_statistics([trial])
    (row,) = curvature_table(statistics, "subject").rows
    truth = [c.curvature.lordosis, c.body_curvature.lordosis, c.curvature.kyphosis, c.body_curvature.kyphosis]
    expected = [of(np.rad2deg(angle)) for angle in truth for of in (np.mean, np.std)]
    np.testing.assert_allclose(row[2:-1], expected, atol=1e-5)
    gradient = flexion_gradient_table(statistics)
    # Ranges of a degree or two, each right to a bin.
    np.testing.assert_allclose(
        column(gradient, "Share (%)"), column(gradient, "Share by the model's couplers (%)"), atol=1.0
    )


def test_the_couplers_shares_are_the_models(spine_model):
    bent = spine_model.default_q.at[spine_model.free_names.index("L5_S1_Flex_Ext")].add(0.1)
    change = (
        expand_coordinates(spine_model, bent) - expand_coordinates(spine_model, spine_model.default_q)
    ) / 0.1
    for level, ratio in reference.MODEL_FLEXION_RATIOS.items():
        # Stated to four places.
        assert change[AXIS_NAMES.index(f"{level}_Flex_Ext")] == pytest.approx(ratio, abs=5.1e-5)


def test_repetitions_are_one_action():
    assert [action_name(a) for a in ("Walking 1", "Walking", "WalkDog 12", "A 1 B")] == [
        "Walking", "Walking", "WalkDog", "A 1 B",
    ]  # fmt: skip


def test_every_table_says_its_data(statistics):
    tables = validation_tables(statistics)
    assert len({table.name for table in tables}) == len(tables) == 9
    data = "Data: 12 trials of 3 subjects, 440 of 500 frames usable, from a test's random numbers"
    for table in tables[:-1]:
        for kind in TABLE_FORMATS:
            text = " ".join(format_table(table, kind).replace("&#x27;", "'").split())
            assert data in text, (table.name, kind)


def test_many_sources_are_counted():
    trials = [make_trial(action=f"Walking {i}", source=f"file{i}.h5") for i in range(5)]
    assert gather_statistics(trials).source.endswith("from file0.h5; file1.h5; file2.h5; and 2 more")


def test_references_never_stand_without_their_status(statistics):
    words = [word for value in reference.ALL for word in (value.status.split(":")[0],)]
    tables = {table.name: table for table in validation_tables(statistics, unverified=True)}
    for name in ("lumbar_range_of_motion", "lumbar_flexion_gradient", "neck_coverage", "reference_values"):
        status = next(i for i, name in enumerate(tables[name].columns) if name.startswith("Status"))
        assert all(any(word in str(row[status]) for word in words) for row in tables[name].rows)
    for name in ("curvature_by_action", "neck_range_by_action"):
        cited = [note for note in tables[name].notes if note.startswith("Reference")]
        assert len(cited) >= 3
        assert all(any(word in note for word in words) for note in cited)


def test_recalled_values_and_those_without_a_primary_source_are_left_out(statistics):
    """Where nothing is left, the table says so; what is sound stays."""
    hidden = [value for value in reference.ALL if not value.is_sound]
    assert {value.status for value in hidden} == {
        reference.RECALLED, reference.SECONDARY_PAGE, reference.SECONDARY,
    }  # fmt: skip
    for table in validation_tables(statistics):
        text = format_table(table, "csv")
        for words in ("recalled, unverified", "mitchmedical", "42 intact", "Lin et al.", "Fon, Pitt"):
            assert words not in text, (table.name, words)
    motion = lumbar_motion_table(statistics)
    shown = dict(zip(column(motion, "Motion"), column(motion, "Status of reference"), strict=True))
    assert shown["flexion/extension"] == shown["lateral bending"] == reference.NONE_SOUND
    assert column(motion, "Reference (°)")[:6] == [None] * 6
    assert column(motion, "Reference (°)")[12:] == [1, 2, 2, 2, 2, None]  # rotation; T12-L1 is recalled
    gradient = flexion_gradient_table(statistics)
    assert set(column(gradient, "Status of reference")) == {reference.NONE_SOUND}
    assert all(math.isnan(share) for share in column(gradient, "Reference share (%)"))
    coverage = neck_coverage_table(statistics)
    assert column(coverage, "Status of reference")[2] == reference.NONE_SOUND
    assert len(reference_table().rows) + len(hidden) == len(reference_table(unverified=True).rows)


# --- what the values come from ---


def test_a_spine_that_nobody_saw_is_told_in_every_table():
    seen, unseen = make_trial(), unseen_trial(action="Sitting")
    statistics = gather_statistics([unseen])
    assert statistics.notices == (UNSEEN_NOTICE,)
    assert statistics.how_known == "by the model's prior"
    for table in validation_tables(statistics)[:-1]:
        assert UNSEEN_NOTICE in table.notes, table.name
    assert column(curvature_table(statistics, "action"), "Back seen (%)") == [0.0]
    both = gather_statistics([seen, unseen])
    (notice,) = both.notices
    assert notice.startswith("1 of 2 trials show no keypoint between hips and neck")
    assert both.how_known == "measured"
    shares = column(curvature_table(both, "action"), "Back seen (%)")
    assert shares[:2] == [0.0, 100.0]
    assert gather_statistics([seen]).notices == ()
    released = gather_statistics([bare_trial()])  # which doesn't say what was seen
    assert released.notices == ()
    assert math.isnan(column(curvature_table(released, "action"), "Back seen (%)")[0])


def test_body_markers_count_as_seen_and_a_share_is_told():
    residuals = np.full((40, 2), 0.01)
    residuals[:10] = np.nan
    trial = make_trial(triangulated=None, marker_names=("Spine_02", "Neck"), residuals=residuals)
    assert seen_names(trial) == ("Spine_02", "Neck")
    assert back_share(trial) == 0.75
    words = spine_words(("Spine_02", "Neck"), 0.75)
    assert words.startswith("2 of 9 (Spine_02, Neck); in 25.0 % of frames none between hips and neck: there")
    assert "come from the model and its prior, not from the pictures" in spine_words((), 0.0)
    assert "prior" not in spine_words(("Hip",) * 9, 1.0)


def test_synthetic_trials_are_told_from_others():
    synthetic = make_trial(source="synthetic capture: S1, Walking, seed 0")
    statistics = gather_statistics([synthetic])
    assert statistics.notices == (SYNTHETIC_NOTICE,)
    assert statistics.how_known == "simulated"
    mixed = gather_statistics([synthetic, make_trial(action="Sitting")])
    assert mixed.how_known == "measured and simulated"
    assert mixed.notices[0].startswith("1 of 2 trials are synthetic captures")
    assert not make_trial(source="/data/synthetic capture/a.npz").is_synthetic


def test_faults_are_counted_before_and_after_repair():
    """Frames 20 and 21 of the trial are repaired; a finding says of what."""
    reason = REASONS[Quality.ANGULAR_JUMP][0]
    events = (
        QualityEvent("quality", 20, 21, "knee_angle_r", reason, "repaired"),
        QualityEvent("quality", 30, 35, "wrist_flex_r", reason, "noted"),
        QualityEvent("signal", 3, 8, "Nose", GAP_FILLED, "noted"),
    )
    statistics = gather_statistics([make_trial(events=events)])
    table = quality_table(statistics, "action")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["Angular jump: before"], row["Angular jump: after"], row["Repaired"]) == (2, 0, 2)
    assert (row["Marker residual: before"], row["Marker residual: after"]) == (5, 5)
    (trial,) = statistics.trials
    assert (trial.n_repaired, trial.n_gaps) == (2, 1)


def test_levels_in_fixed_ratios_are_noticed(spine_model):
    angles = spine_angles(make_trial())
    assert not in_fixed_ratios(angles)
    turns = np.random.default_rng(0).normal(0, 3, (40, 1, 3))
    ratios = np.array([1, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714])[:, None]
    held = np.concatenate([turns * ratios + 4.0, angles.rotations[:, 6:]], axis=1)
    assert in_fixed_ratios(dataclasses.replace(angles, rotations=held.astype(np.float32)))
    loose = held + np.random.default_rng(1).normal(0, 0.1, held.shape)
    assert not in_fixed_ratios(dataclasses.replace(angles, rotations=loose))
    assert not in_fixed_ratios(dataclasses.replace(angles, rotations=held[:2]))
    trial = make_trial(vertebral_rotations=np.deg2rad(held))
    assert FIXED_RATIOS in lumbar_motion_table(gather_statistics([trial])).notes
    assert FIXED_RATIOS not in lumbar_motion_table(gather_statistics([trial, make_trial()])).notes


def test_errors_against_a_truth_are_a_table():
    rows = {"triangulated": {"spine": 38.0, "all": 32.0}, "simulated": {"spine": 11.0}}
    table = truth_table(rows, "2 synthetic trials", [SYNTHETIC_NOTICE])
    assert table.columns == ("Keypoints", "Spine (mm)", "All (mm)")
    assert table.rows == (("triangulated", 38.0, 32.0), ("simulated", 11.0, None))
    assert SYNTHETIC_NOTICE in format_table(table, "html")


def test_references_are_the_shared_ones(shared_data):
    """Each number, limit and status is the shared file's, and none of its adult angles is left out."""
    shared = json.loads((shared_data / "reference_values.json").read_text(encoding="utf-8"))

    def same(value, entry):
        given = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
        assert list(value.degrees) == given
        assert value.status == entry["status"]
        assert value.limits == (tuple(entry["limits"]) if "limits" in entry else None)

    keys = dict(zip(MOTIONS, ("FE", "LB_one_side", "AR_one_side"), strict=True))
    for (level, motion), value in reference.LUMBAR_ROM.items():
        same(value, shared["lumbar_rom_white_panjabi"][keys[motion]][level_label(level)])
        assert value.sides == (2 if keys[motion] == "FE" else 1)
    other = shared["lumbar_rom_other"]
    assert {level_label(v) for v in reference.LUMBAR_FLEXION_RADIOGRAPHIC} == set(
        other["radiographic_FE_secondary"]
    )
    for level, value in reference.LUMBAR_FLEXION_RADIOGRAPHIC.items():
        same(value, other["radiographic_FE_secondary"][level_label(level)])
    same(reference.LUMBAR_FLEXION_PEARCY, other["pearcy1984_FE_each_level"])
    neck = ("FE_total_C0_C7", "lateral_one_side_C0_C7", "axial_rotation_one_side")
    for motion, key in zip(MOTIONS, neck, strict=True):
        same(reference.NECK_ROM[motion], shared["cervical_rom"][key])
    lordosis = ("paper_simspine_mean", "lin1992", "standing_T12_S1_627", "recumbent_T12_S1_627",
                "L4_S1_standing", "standing_30_males", "adult_range")  # fmt: skip
    for value, key in zip(reference.LORDOSIS, lordosis, strict=True):
        same(value, shared["lumbar_lordosis"][key])
    kyphosis = shared["thoracic_kyphosis"]
    plain = ("paper_simspine_mean", None, "normal_range", "SRS_range", "T2_T12_adult")
    for value, key in zip(reference.KYPHOSIS, plain, strict=False):
        if key:
            same(value, kyphosis[key])
    assert reference.KYPHOSIS[1].status == kyphosis["fon1980"]["status"]
    assert reference.KYPHOSIS[1].shown() == "20 to 40"
    assert kyphosis["fon1980"]["value"].startswith("about 20-40")
    for value, who in zip(reference.KYPHOSIS[5:], ("men", "women"), strict=True):
        same(
            value,
            kyphosis["spinalmouse_men_women"] | {"value": kyphosis["spinalmouse_men_women"]["value"][who]},
        )


NASTY = Table(
    "nasty", "A title with 50 % & <b>", ("Name", "Value (°)"),
    (("a|b & <script>_{}\\", 1.23456789), ('quoted "x", y', None), ("-", float("nan")), ("n", 7)), (0, 2),
    "data_1 # 100 %", ("A note.",),
)  # fmt: skip


def test_csv_is_read_back():
    lines = format_table(NASTY, "csv").splitlines()
    assert lines[:3] == ["# A title with 50 % & <b>", "# Data: data_1 # 100 %", "# A note."]
    rows = list(csv.reader(io.StringIO("\n".join(lines[3:]))))
    assert rows == [
        ["Name", "Value (°)"],
        [NASTY.rows[0][0], "1.23457"],
        ['quoted "x", y', ""],
        ["-", ""],
        ["n", "7"],
    ]


def test_markdown_has_as_many_cells_in_each_row():
    lines = [line for line in format_table(NASTY, "md").splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3}
    assert lines[1] == "|---|---:|"
    assert lines[2].endswith("| 1.23 |")


def test_latex_has_no_bare_special_character():
    text = format_table(NASTY, "tex")
    body = text[text.index(r"\caption") : text.index(r"\end{table}")]
    for escaped in (r"\&", r"\%", r"\#", r"\_", r"\{", r"\}", r"\textless{}", r"\textbackslash{}"):
        assert escaped in body
        body = body.replace(escaped, "")
    assert not set("%#_<>$") & set(body)
    assert body.count("{") == body.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert [line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")] == [1] * 5


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.cells, self.inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag == "td"
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_html_is_escaped():
    parser = Cells()
    parser.feed(format_table(NASTY, "html"))
    assert parser.cells == ["a|b & <script>_{}\\", "1.23", 'quoted "x", y', "-", "-", "-", "n", "7"]
    assert not {"script", "b"} & set(parser.tags)


def test_text_stands_in_columns_and_breaks_long_cells():
    long = Table(
        "t", "Title", ("A long heading (°)", "Text"), ((1.5, "word " * 30), (22.25, "short")), (1, 0), "d"
    )
    lines = format_table(long, "txt").splitlines()
    assert lines[0] == "Title"
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    assert [line.split()[0] for line in lines[2:rule]] == ["A", "heading"]
    assert lines[rule + 1].startswith("        1.5  word word")
    assert max(map(len, lines)) < 70
    assert sum(line.count("word") for line in lines) == 30


def test_a_table_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="row 1 of table t has 1 cells; valid is 2"):
        Table("t", "T", ("a", "b"), (("x",),), (0, 0), "d")
    with pytest.raises(ShapeError, match="decimals of table t has 1 cells"):
        Table("t", "T", ("a", "b"), (), (0,), "d")
    with pytest.raises(
        UnknownNameError, match="'docx' is not in this program; it has: txt, md, csv, tex, html"
    ):
        format_table(NASTY, "docx")

"""Scaling and marker placement on a real static trial, held against OpenSim's own scale tool."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax import assets
from simspine_jax.errors import (
    FileFormatError,
    ShapeError,
    SimspineError,
    UnknownNameError,
    UnsupportedModelError,
)
from simspine_jax.io import (
    ManualScale,
    MarkerTrajectory,
    Measurement,
    ScaleSetup,
    ScalingStage,
    read_scale_setup,
    read_trc,
    write_scale_setup,
    write_trc,
)
from simspine_jax.io.sidecar import read_sidecar
from simspine_jax.kinematics import placement, scaling
from simspine_jax.kinematics.forward import scaled_frames

osim = pytest.importorskip("opensim")

import osim_models  # noqa: E402
from osim2mjcf import convert, opensim_scale  # noqa: E402
from osim2mjcf import verify as parity  # noqa: E402
from osim2mjcf.opensim_scale import run_scale_tool, scale_osim  # noqa: E402

# Setup and marker set, static trial.
TRIALS = {"Body25b": "markers_static.trc", "LSTM": "markers_static_lstm.trc"}
# Means over twelve frames are summed in another order.
FACTOR_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Subject:
    name: str
    generic: Path
    markers: Path
    trc: Path
    setup_path: Path
    model: ssj.SpineModel
    trial: MarkerTrajectory
    setup: ScaleSetup
    tool: opensim_scale.ToolResult
    ours: scaling.ScaleResult

    @functools.cached_property
    def tool_factors(self) -> np.ndarray:
        return np.array([self.tool.factors[body] for body in self.model.body_names])

    @functools.cached_property
    def by_body(self) -> dict[str, list[float]]:
        return dict(zip(self.model.body_names, np.asarray(self.ours.factors).tolist(), strict=True))


def measure(model, trial, setup) -> scaling.ScaleResult:
    return scaling.scale_by_setup(model, trial.positions, trial.names, trial.times, setup)


def released(markers: Path, path: Path) -> Path:
    """The marker set with markers that may be moved; all of the published ones are fixed."""
    text = markers.read_text()
    assert text.count("<fixed>true</fixed>") > 10
    path.write_text(text.replace("<fixed>true</fixed>", "<fixed>false</fixed>"))
    return path


@pytest.fixture(scope="module", params=TRIALS)
def subject(request, shared_data, spine_osim, tmp_path_factory) -> Subject:
    name, folder = request.param, tmp_path_factory.mktemp("scaled")
    markers = assets.fetch_spine_package() / f"Markers_{name}.xml"
    data = shared_data / "pose2sim_demo"
    setup_path, trc = data / f"Scaling_Setup_{name}.xml", data / TRIALS[name]
    setup, trial = read_scale_setup(setup_path), read_trc(trc)
    model = ssj.load_model(spine_osim, markers)
    tool = run_scale_tool(setup_path, spine_osim, trc, folder / "tool.osim", markers=markers)
    ours = measure(model, trial, setup)
    return Subject(name, spine_osim, markers, trc, setup_path, model, trial, setup, tool, ours)


def test_factors_are_the_tools(subject: Subject) -> None:
    assert (subject.ours.status == scaling.ScaleStatus.MEASURED).all()
    # The factors that are compared differ from body to body.
    assert np.unique(subject.tool_factors.round(6)).size > 7
    np.testing.assert_allclose(subject.ours.factors, subject.tool_factors, rtol=FACTOR_TOLERANCE)
    untouched = (subject.tool_factors == 1).all(axis=1)
    assert (np.asarray(subject.ours.measured).any(axis=1) == ~untouched).all()


def test_the_tool_writes_these_factors_itself(subject: Subject, tmp_path: Path) -> None:
    """The probes that read the tool's factors agree with its own file, which has six digits."""
    tool = osim.ScaleTool(str(subject.setup_path))
    source = parity.load_osim(subject.generic)
    source.updateMarkerSet(osim.MarkerSet(str(subject.markers)))
    source.initSystem()
    scaler = tool.getModelScaler()
    scaler.setMarkerFileName(str(subject.trc))
    scaler.setOutputScaleFileName(str(tmp_path / "scales.xml"))
    assert scaler.processModel(source, "", subject.setup.mass_kg)
    scales = osim.ScaleSet(str(tmp_path / "scales.xml"))
    written = {}
    for i in range(scales.getSize()):
        row = osim.Vec3()
        scales.get(i).getScaleFactors(row)
        written[scales.get(i).getSegmentName()] = row.to_numpy()
    factors = np.array([written[body] for body in subject.model.body_names])
    np.testing.assert_allclose(subject.ours.factors, factors, rtol=5e-6)


def test_poses_of_three_scaled_models_agree(subject: Subject, tmp_path: Path) -> None:
    """The generic model with our factors; our scaled model, converted; the tool's scaled model in OpenSim."""
    q = parity.sample_poses(subject.model, 50, seed=3)
    source = parity.load_osim(subject.tool.model)
    coordinates = parity.coupled_coordinates(source, subject.model, q)
    reference = parity.opensim_poses(source, subject.model, coordinates)
    forward = jax.jit(ssj.forward_kinematics)
    inputs = parity.deviation(
        "factors as inputs", forward(subject.model, q, scale_factors=subject.ours.factors), reference
    )
    assert inputs.within(parity.FLOAT64_TOLERANCE_M), inputs
    written = scale_osim(
        subject.generic, tmp_path / "ours.osim", subject.by_body,
        mass_kg=subject.setup.mass_kg, markers=subject.markers,
    )  # fmt: skip
    model = ssj.load_model(written)
    converted = parity.deviation("scaled model, converted", forward(model, q), reference)
    assert converted.within(parity.FLOAT64_TOLERANCE_M), converted
    # Without factors they are centimetres apart.
    generic = parity.deviation("generic", forward(subject.model, q), reference)
    assert generic.worst_m > 0.02


@pytest.mark.parametrize("preserve", [True, False])
def test_masses_and_inertias_are_the_tools(subject: Subject, preserve: bool, tmp_path: Path) -> None:
    setup = ScaleSetup(
        mass_kg=55.0,
        scaling=replace(subject.setup.scaling, preserve_mass_distribution=preserve),
        placing=subject.setup.placing,
    )
    write_scale_setup(tmp_path / "setup.xml", setup)
    tool = run_scale_tool(
        tmp_path / "setup.xml", subject.generic, subject.trc, tmp_path / "tool.osim", markers=subject.markers
    )
    ours = scale_osim(
        subject.generic, tmp_path / "ours.osim", subject.by_body,
        mass_kg=55.0, preserve_mass_distribution=preserve, markers=subject.markers,
    )  # fmt: skip
    expected, found = mass_properties(tool.model), mass_properties(ours)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(expected[:, 0].sum(), 55.0)
    shares = mass_properties(subject.generic)[:, 0]
    same = np.allclose(expected[:, 0] / 55, shares / shares.sum(), rtol=1e-9)
    assert same == preserve


def mass_properties(path: Path) -> np.ndarray:
    """[B 10] mass, mass centre and inertia of each body."""
    source = parity.load_osim(path)
    rows = []
    found = source.getBodySet()
    for i in range(found.getSize()):
        body = found.get(i)
        center, inertia = body.get_mass_center(), body.get_inertia()
        rows.append([body.get_mass(), *center.to_numpy(), *(inertia.get(k) for k in range(6))])
    return np.array(rows)


def test_given_factors_order_axes_and_gaps_are_the_tools(subject: Subject, tmp_path: Path) -> None:
    """A setup with every liberty: given factors before and after, switched-off parts, odd names, a short time
    range, and a marker that is missing in one of its frames."""
    a, b, c, d = [n for n in subject.model.marker_names if n in subject.trial.names][:4]
    stage = ScalingStage(
        order=("manualScale", "measurements"),
        measurements=(
            Measurement("one", ((a, c), (a, d)), ("torso", "femur_r"), ("XZ", "Y")),
            Measurement("two", ((a, d),), ("torso", "nobody"), ("Z", "X")),
            Measurement("off", ((a, d),), ("head",), apply=False),
            Measurement("odd", ((a, "nothing"),), ("head",)),
            Measurement("gap", ((b, c), (a, c)), ("tibia_l",)),
            Measurement("empty", (), ("tibia_l",)),
        ),
        manual=(
            ManualScale("torso", (2.0, 3.0, 4.0)),
            ManualScale("tibia_r", (1.5, 1.0, 0.5)),
            ManualScale("tibia_l", (9.0, 9.0, 9.0), apply=False),
        ),
        time_range=(0.06, 0.11),
    )  # fmt: skip
    positions = np.array(subject.trial.positions)
    positions += np.random.default_rng(0).normal(0, 0.01, positions.shape)
    positions[4, subject.trial.names.index(b)] = np.nan
    trial = MarkerTrajectory(subject.trial.names, subject.trial.times, positions, subject.trial.rate)
    write_trc(tmp_path / "static.trc", trial)
    trial = read_trc(tmp_path / "static.trc")
    setup = ScaleSetup(mass_kg=60.0, scaling=stage)
    write_scale_setup(tmp_path / "setup.xml", setup)
    tool = run_scale_tool(
        tmp_path / "setup.xml", subject.generic, tmp_path / "static.trc", tmp_path / "tool.osim",
        markers=subject.markers, place=False,
    )  # fmt: skip
    ours = measure(subject.model, trial, setup)
    expected = np.array([tool.factors[body] for body in subject.model.body_names])
    np.testing.assert_allclose(ours.factors, expected, rtol=1e-9)
    assert [scaling.ScaleStatus(int(s)).name for s in ours.status] == [
        "MEASURED", "MEASURED", "SWITCHED_OFF", "NOT_ON_MODEL", "MISSING_IN_FRAMES", "NO_PAIRS",
    ]  # fmt: skip
    assert ours.ignored_bodies == ("nobody",)
    row = expected[subject.model.body_names.index("torso")]
    assert row[1] == 3.0
    assert len(set(row)) == 3


def test_placed_markers(subject: Subject, tmp_path: Path) -> None:
    """Our static pose is at least as good as the tool's, and from the tool's pose we place as it does."""
    loose = released(subject.markers, tmp_path / "loose.xml")
    tool = run_scale_tool(
        subject.setup_path, subject.generic, subject.trc, tmp_path / "tool.osim", markers=loose, place=True
    )
    model, stage = subject.model, subject.setup.placing
    frames = scaling.frames_between(subject.trial.times, stage.time_range)
    markers = np.full((subject.trial.n_frames, model.n_markers, 3), np.nan)
    common = [name for name in model.marker_names if name in subject.trial.names]
    index = [subject.trial.names.index(name) for name in common]
    markers[:, model.marker_indices(common)] = subject.trial.positions[:, index]
    found = placement.place_markers(
        model, markers[frames], setup=stage.ik_setup, scale_factors=subject.ours.factors
    )
    assert found.solution.status[0] == ssj.IKStatus.CONVERGED
    present = np.isin(model.marker_names, common)
    assert (np.asarray(found.moved) == present).all()

    pose = np.array([tool.pose[name] for name in model.free_names])
    expected = tool_locations(tool.model, common)
    target = np.where(present[:, None], found.static_markers, 0)
    there = placement._locations(model, pose, target, subject.ours.factors)
    np.testing.assert_allclose(np.asarray(there)[present], expected, atol=1e-12)

    ours, theirs = (objective(subject, q, found.static_markers) for q in (found.solution.q[0], pose))
    # The tool stops early: its objective is a half and a tenth above the minimum here.
    assert ours <= 1.0001 * theirs
    assert theirs < 2 * ours
    np.testing.assert_allclose(ours, found.solution.objective[0], rtol=1e-9)
    # Straight arms turn freely about themselves, so a few markers of the arms land elsewhere.
    before = scaled_frames(model, subject.ours.factors, None, there.dtype).site_position
    placed = np.asarray(before + found.offsets)[present]
    assert np.median(np.linalg.norm(placed - expected, axis=-1)) < 0.01
    assert np.linalg.norm(np.asarray(found.offsets)[present], axis=-1).max() > 0.03


def objective(subject: Subject, q, static) -> float:
    """OpenSim's, by NumPy: marker errors divided by the sum of weights, coordinate errors as they are."""
    model, stage = subject.model, subject.setup.placing
    places = np.asarray(ssj.forward_kinematics(model, q, scale_factors=subject.ours.factors).markers)
    given = {t.name: t.weight for t in stage.marker_tasks if t.apply}
    weights = np.array([given.get(name, 0.0) for name in model.marker_names])
    weights = weights * np.isfinite(static).all(axis=-1)
    squared = np.nan_to_num(((places - static) ** 2).sum(axis=-1))
    value = 0.5 * (weights * squared).sum() / weights.sum()
    coordinates = np.asarray(ssj.expand_coordinates(model, q))
    defaults = np.asarray(model.default_coordinates)
    for task in stage.coordinate_tasks:
        if task.apply:
            i = model.coordinate_names.index(task.name)
            goal = defaults[i] if task.value_type == "default_value" else task.value
            value += 0.5 * task.weight * (coordinates[i] - goal) ** 2
    return float(value)


def tool_locations(path: Path, names: list[str]) -> np.ndarray:
    source = parity.load_osim(path)
    found = source.getMarkerSet()
    return np.stack([found.get(name).get_location().to_numpy() for name in names])


def test_fixed_markers_stay_in_the_tool(subject: Subject, tmp_path: Path) -> None:
    tool = run_scale_tool(
        subject.setup_path,
        subject.generic,
        subject.trc,
        tmp_path / "tool.osim",
        markers=subject.markers,
        place=True,
    )
    fixed = fixed_markers(subject.markers)
    common = [n for n in fixed if n in subject.trial.names]
    assert len(common) > 5
    frames = scaled_frames(subject.model, subject.ours.factors, None, subject.ours.factors.dtype)
    scaled = np.asarray(frames.site_position)[subject.model.marker_indices(common)]
    np.testing.assert_allclose(tool_locations(tool.model, common), scaled, atol=1e-12)


def fixed_markers(path: Path) -> list[str]:
    found = osim.MarkerSet(str(path))
    return [found.get(i).getName() for i in range(found.getSize()) if found.get(i).get_fixed()]


def test_offsets_go_into_the_written_model(subject: Subject, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    offsets = rng.normal(0, 0.02, (subject.model.n_markers, 3))
    written = scale_osim(
        subject.generic, tmp_path / "deep" / "placed.osim", subject.by_body, mass_kg=70.0,
        markers=subject.markers, name="walker",
        marker_offsets=dict(zip(subject.model.marker_names, offsets.tolist(), strict=True)),
    )  # fmt: skip
    assert [p.name for p in written.parent.iterdir()] == ["placed.osim"]
    model = ssj.load_model(written)
    assert model.name == "walker"
    q = parity.sample_poses(subject.model, 3, seed=1)
    given = {"scale_factors": subject.ours.factors, "marker_offsets": offsets}
    expected = ssj.forward_kinematics(subject.model, q, **given).markers
    np.testing.assert_allclose(ssj.forward_kinematics(model, q).markers, expected, atol=1e-12)


def test_what_cannot_be_scaled_is_named(arm_osim: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaled.osim"

    def scale(**changes):
        arguments = {"factors": {"trunk": [1.1, 1, 1]}, "mass_kg": 70.0, **changes}
        return scale_osim(arm_osim, out, arguments.pop("factors"), **arguments)

    wrong = [
        ({"factors": {"tail": [1, 1, 1]}}, UnknownNameError, "Body 'tail' is not in .*arm.osim; it has"),
        ({"factors": {"trunk": [1, 0, 1]}}, ShapeError, r"body 'trunk' are \[1, 0, 1\]; valid are three"),
        ({"factors": {"trunk": [1, 1]}}, ShapeError, r"body 'trunk' are \[1, 1\]"),
        ({"factors": {"trunk": [1, 1, float("nan")]}}, ShapeError, "body 'trunk'"),
        ({"mass_kg": 0.0}, ShapeError, "The mass is 0.0 kg; valid is one above zero"),
        ({"marker_offsets": {"C7": [0, 0, 0]}}, UnknownNameError, "Marker 'C7' is not in"),
        ({"marker_offsets": {"trunk.0": [0, 0]}}, ShapeError, r"marker 'trunk.0' is \[0, 0\]"),
    ]  # fmt: skip
    for changes, kind, message in wrong:
        with pytest.raises(kind, match=message):
            scale(**changes)
    assert not out.exists()
    assert scale() == out
    (tmp_path / "file").write_text("")
    with pytest.raises(SimspineError, match=r"can't be written"):
        scale_osim(arm_osim, tmp_path / "file" / "scaled.osim", {}, mass_kg=70.0)
    with pytest.raises(FileFormatError, match="There is no file"):
        scale_osim(tmp_path / "none.osim", out, {}, mass_kg=70.0)


def plain_tree(seed: int):
    """A generated model whose frames OpenSim scales as we do: bodies joined directly, none reversed."""
    rng = np.random.default_rng(seed)
    model = osim.Model()
    model.setName(f"plain{seed}")
    places = [model.getGround()]
    for i in range(int(rng.integers(3, 6))):
        link = osim_models.body(f"b{i}", rng)
        model.addBody(link)
        near = places[int(rng.integers(max(0, len(places) - 3), len(places)))]
        kind = str(rng.choice([*osim_models.JOINTS, "Custom", "Custom"]))
        model.addJoint(osim_models.joint(kind, f"j{i}", near, link, rng))
        for k in range(2):
            model.addMarker(osim.Marker(f"b{i}_m{k}", link, osim_models.vec3(rng.normal(0, 0.2, 3))))
        places.append(link)
    model.finalizeConnections()
    osim_models.constrain(model, rng)
    return model


def test_generated_models_scale_as_opensims(tmp_path: Path) -> None:
    """Oblique translation axes of any sign and length, any function, coupled and locked coordinates."""
    negative = refused = compared = 0
    for seed in range(16):
        path = osim_models.save(plain_tree(seed), tmp_path / f"{seed}.osim")
        converted = convert(path, tmp_path / f"{seed}")
        description = read_sidecar(converted.with_suffix(".json"))
        model = ssj.load_model(converted)
        rng = np.random.default_rng(seed)
        factors = rng.uniform(0.7, 1.4, (len(model.body_names), 3))
        q = parity.sample_poses(model, 3, seed=1)
        if any(c.role == "coupled" and c.motion == "translational" for c in description.coordinates):
            # OpenSim scales the coupler's function itself, and with it the coordinate's value.
            with pytest.raises(UnsupportedModelError, match="coupled translations"):
                ssj.forward_kinematics(model, q, scale_factors=factors)
            refused += 1
            continue
        axes = [j.scale_axis for j in description.joint_positions if j.scale_axis is not None]
        negative += any(min(axis) < 0 for axis in axes)
        by_body = dict(zip(model.body_names, factors.tolist(), strict=True))
        source = parity.load_osim(scale_osim(path, tmp_path / f"{seed}s.osim", by_body, mass_kg=10.0))
        coordinates = parity.coupled_coordinates(source, model, q)
        reference = parity.opensim_poses(source, model, coordinates)
        found = parity.deviation(
            path.stem, ssj.forward_kinematics(model, q, scale_factors=factors), reference
        )
        assert found.within(parity.FLOAT64_TOLERANCE_M), found
        compared += 1
    assert compared >= 5
    assert negative >= 3
    assert refused >= 2

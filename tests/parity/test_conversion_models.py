"""The five real models, converted and held against OpenSim in random admissible poses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

osim = pytest.importorskip("opensim")

from osim2mjcf import convert  # noqa: E402
from osim2mjcf import verify as parity  # noqa: E402

from simspine_jax import assets, errors  # noqa: E402
from simspine_jax.kinematics.forward import forward_kinematics  # noqa: E402
from simspine_jax.kinematics.model import load_model  # noqa: E402

MODELS = ("spine", "simple", "demo", "lstm", "gait2392")


@pytest.fixture(scope="session")
def real_model(tmp_path_factory, request):
    """A function from a model's name to its OpenSim file, its marker set or None, and its conversion."""

    @functools.cache
    def find(name):
        markers = request.getfixturevalue("paper_markers") if name == "spine" else None
        if name in ("spine", "simple"):
            request.getfixturevalue("spine_osim")
            path = assets.spine_model_path() if name == "spine" else assets.simple_model_path()
        else:
            data = request.getfixturevalue("shared_data")
            files = {"gait2392": "gait2392/model.osim", "lstm": "pose2sim_demo/model_lstm_scaled.osim"}
            path = data / files.get(name, "pose2sim_demo/model.osim")
        return path, markers, convert(path, tmp_path_factory.mktemp(name), markers=markers)

    return find


@pytest.mark.parametrize("name", MODELS)
def test_parity_with_opensim(name, real_model):
    path, markers, converted = real_model(name)
    report = parity.verify(path, converted, poses=200, seed=0, markers=markers)
    assert report.passed(tolerance_m=1e-9, tolerance_float32_m=5e-6), parity.format_report(report)
    # Bodies went far enough apart for the numbers to mean something.
    assert report.extent_m > 0.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "tolerance_m"),
    [
        (jnp.float64, parity.FLOAT64_TOLERANCE_M),
        pytest.param(jnp.float32, parity.FLOAT32_TOLERANCE_M, marks=pytest.mark.slow),
    ],
)
def test_parity_of_the_mjx_engine(name, dtype, tolerance_m, real_model):
    path, markers, converted = real_model(name)
    model = load_model(converted, dtype=dtype)
    forward = functools.partial(forward_kinematics, engine="mjx")
    found = parity.compare(path, model, forward, poses=200, seed=1, markers=markers)
    assert found.within(tolerance_m), found


@pytest.mark.parametrize("name", ["spine", "gait2392"])
@pytest.mark.parametrize("per_axis", [False, True])
def test_scale_factors_act_as_opensims_scaling(name, per_axis, real_model):
    path, markers, converted = real_model(name)
    model = load_model(converted, dtype=jnp.float64)
    rng = np.random.default_rng(7)
    factors = rng.uniform(0.8, 1.25, (len(model.body_names), 3 if per_axis else 1))
    source = parity.load_osim(path, markers)
    scales = osim.ScaleSet()
    for body, row in zip(model.body_names, np.broadcast_to(factors, (len(factors), 3)), strict=True):
        scale = osim.Scale()
        scale.setSegmentName(body)
        scale.setScaleFactors(osim.Vec3(*map(float, row)))
        scale.setApply(True)
        scales.cloneAndAppend(scale)
    assert source.scale(source.initSystem(), scales, True, 70.0)
    q = parity.sample_poses(model, 20, seed=3)
    reference = parity.opensim_poses(source, model, parity.coupled_coordinates(source, model, q))
    found = jax.jit(forward_kinematics)(model, q, scale_factors=factors)
    difference = parity.deviation("scaled", found, reference)
    assert difference.within(parity.FLOAT64_TOLERANCE_M), difference
    unscaled = parity.deviation(
        "unscaled", parity.levels(model, q[:1]), jax.tree.map(lambda x: x[:1], reference)
    )
    assert unscaled.worst_m > 0.02


def test_a_report_says_what_differs(real_model, tmp_path):
    """A converted model whose markers were moved fails, and the report names the marker."""
    path, _, converted = real_model("demo")
    for suffix in (".xml", ".json"):
        (tmp_path / converted.name).with_suffix(suffix).write_bytes(
            converted.with_suffix(suffix).read_bytes()
        )
    moved = tmp_path / converted.name
    text = moved.read_text()
    start = text.index('<site name="Nose" pos="') + len('<site name="Nose" pos="')
    moved.write_text(text[:start] + "0.5 0.5 0.5" + text[text.index('"', start) :])
    report = parity.verify(path, moved, poses=2)
    assert not report.passed()
    worst = report.marker_names[int(np.argmax(report.float64.marker_position_m))]
    assert worst == "Nose"
    text = parity.format_report(report)
    assert "FAILED" in text
    assert "Nose" in text
    with pytest.raises(errors.UnknownNameError, match="is not in the OpenSim model"):
        parity.verify(path, real_model("gait2392")[2], poses=2)

"""Runs: config files, settings by name, JSON, and the order of the data and learning rates that they mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.training.detector_run import DetectorRun
from simspine_jax.training.run import CONFIGS, Run, load_config, load_run, read_run, with_settings, write_run
from simspine_jax.training.state import data_state, learning_rate, make_optimiser, places

NAMES = ("kinematic_full", "simple_full", "simple_spine", "temporal_full")


@pytest.mark.parametrize("name", NAMES)
def test_each_config_is_a_run_that_tells_its_cost_and_survives_json(name: str, tmp_path: Path) -> None:
    run = load_run(name)
    assert run.name == name
    assert run.expected.minutes > 0
    write_run(tmp_path / "run.json", run)
    assert read_run(tmp_path / "run.json") == run
    changed = with_settings(run, ["optimiser.drops=0.5,0.7", "data.rate_hz=1", "seed=9"])
    write_run(tmp_path / "run.json", changed)
    assert read_run(tmp_path / "run.json") == changed != run


def test_each_config_is_of_a_lifter_or_of_a_detector() -> None:
    for path in CONFIGS.glob("*.py"):
        if path.stem != "__init__":
            assert isinstance(load_config(path.stem), Run if path.stem in NAMES else DetectorRun)


def test_settings_have_the_types_of_their_fields() -> None:
    run = with_settings(
        load_run("kinematic_full"),
        [
            "steps=12", "model.width=64", "model.gravity=false", "optimiser.clip=none", "data.rate_hz=2.5",
            "compute=bfloat16", "average=none", "optimiser.drops=0.1,0.2", "data.source=truth",
        ],
    )  # fmt: skip
    assert (run.steps, run.compute, run.average, run.data.rate_hz) == (12, "bfloat16", None, 2.5)
    assert (run.optimiser.clip, run.optimiser.drops, run.data.source) == (None, (0.1, 0.2), "truth")
    assert dataclasses.asdict(run.model)["width"] == 64
    assert dataclasses.asdict(run.model)["gravity"] is False


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("steps", "has no value"),
        ("steps=many", "valid is a whole number"),
        ("steps=0", "valid is 1 or more"),
        ("optimiser.clip=tight", "valid is a number"),
        ("model.gravity=maybe", "valid are true and false"),
        ("data.source=guess", "valid are detected, truth"),
        ("data=truth", r"is a group; valid are data\.config"),
        ("average=1.5", "valid is between 0 and 1"),
        ("save_every=7", "multiples of log_every"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(setting: str, says: str) -> None:
    with pytest.raises(SimspineError, match=says):
        with_settings(load_run("kinematic_full"), [setting])


def test_settings_are_judged_together() -> None:
    run = with_settings(
        load_run("simple_full"), ["save_every=6", "log_every=3", "model.width=8", "model.blocks=1"]
    )
    assert (run.save_every, run.log_every) == (6, 3)
    assert dataclasses.asdict(run.model) == {"width": 8, "blocks": 1, "dropout": 0.5}


@pytest.mark.parametrize("setting", ["stepz=3", "model.widht=3", "steps.more=3", "expected=3"])
def test_unknown_settings_list_the_valid_ones(setting: str) -> None:
    with pytest.raises(UnknownNameError, match="Setting"):
        with_settings(load_run("kinematic_full"), [setting])


def test_a_file_of_ones_own_is_a_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    source = (CONFIGS / "simple_full.py").read_text()
    path.write_text(source.replace('name="simple_full"', 'name="mine"'))
    assert load_run(str(path)) == dataclasses.replace(load_run("simple_full"), name="mine")
    for text, says in (("RUN = 3", "has no RUN"), ("1 / 0", "ZeroDivisionError"), ("RUN = (", "SyntaxError")):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=says):
            load_run(str(path))
    with pytest.raises(FileFormatError, match="no such file"):
        load_run(str(tmp_path / "none.py"))
    with pytest.raises(UnknownNameError, match="did you mean 'simple_full'"):
        load_run("simple_ful")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "x", "model": {"kind": "other"}}', "\0"])
def test_damaged_run_files_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"run\.json"):
        read_run(tmp_path / "run.json")


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    run = with_settings(load_run("simple_full"), ["batch_size=8"])
    count, batches = 45, 5
    epochs = [
        np.concatenate([places(jnp.asarray(e * batches + i, jnp.int32), run, count) for i in range(batches)])
        for e in range(2)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 40
        assert epoch.min() >= 0
        assert epoch.max() < count
    assert (epochs[0] != epochs[1]).any()
    state = data_state(13, run, count)
    assert (state.epoch, state.position, state.count) == (2, 3, count)


def test_learning_rates_are_as_written() -> None:
    options = load_run("simple_full").optimiser
    rate = learning_rate(options, 100)
    first = options.learning_rate
    for step, wanted in ((0, first), (59, first), (61, first / 10), (86, first / 100)):
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5)
    warm = dataclasses.replace(options, warmup=10, schedule="cosine", final=0.01)
    rate = learning_rate(warm, 110)
    theirs = optax.cosine_decay_schedule(first, 100, alpha=0.01)
    for step, wanted in ((5, first / 2), (10, first), (60, float(theirs(50))), (110, first / 100)):
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5)


def test_weight_decay_leaves_vectors_alone_and_clipping_holds() -> None:
    options = dataclasses.replace(load_run("simple_full").optimiser, weight_decay=0.5, clip=1.0)
    optimiser = make_optimiser(options, 10)
    params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2)}
    still = optimiser.update({k: v * 0 for k, v in params.items()}, optimiser.init(params), params)[0]
    np.testing.assert_allclose(still["matrix"], -0.5 * options.learning_rate, rtol=1e-6)
    np.testing.assert_array_equal(still["vector"], 0)
    one, large = (
        optimiser.update({k: v * size for k, v in params.items()}, optimiser.init(params), params)[1]
        for size in (10.0, 1000.0)
    )
    for a, b in zip(_moments(one), _moments(large), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def _moments(state) -> list:
    return [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]


def test_a_run_needs_sense() -> None:
    with pytest.raises(SimspineError, match="batch_size of the run simple_full is 0"):
        dataclasses.replace(load_run("simple_full"), batch_size=0)
    assert isinstance(load_run("simple_full"), Run)

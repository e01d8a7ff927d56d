"""Training of detectors: published recipes, learning, resuming bit for bit, scores, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_pictures import K, drawn_picture
from flax import nnx

from simspine_jax import cli_training
from simspine_jax.datasets import pictures_in_memory
from simspine_jax.datasets.mixing import PictureMix
from simspine_jax.datasets.picture_batches import upright_crop
from simspine_jax.detection.codecs import Found, SimCC
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.hrnet import HRNetOptions
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.layers import Norm
from simspine_jax.detection.models import PixelOptions, build_detector
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, UnknownNameError
from simspine_jax.metrics.keypoints2d import AUC_CEILING
from simspine_jax.picture_export import export_pictures
from simspine_jax.pictures import decode_jpeg, top_down
from simspine_jax.pipeline.detectors import open_detector
from simspine_jax.training.checkpoints import FOLDER, Checkpoints, named_leaves
from simspine_jax.training.detector_evaluation import detect, detector_scores, detector_table, draw_detections
from simspine_jax.training.detector_run import (
    CurriculumOptions,
    DetectorOptimiser,
    DetectorRun,
    load_detector_run,
    read_detector_run,
    write_detector_run,
)
from simspine_jax.training.detector_step import (
    detector_rate,
    grouped,
    initial_detector_state,
    make_detector_optimiser,
    make_detector_step,
    scaled_by_layer,
    ungrouped,
)
from simspine_jax.training.detectors import (
    keep_detector,
    load_trained_detector,
    open_crops,
    shapes_of,
    train_detector,
)
from simspine_jax.training.loop import RUN_FILE
from simspine_jax.training.run import Expected, load_run, read_run, with_settings, write_run
from simspine_jax.training.state import data_mesh

pytestmark = pytest.mark.usefixtures("float32")

SIZE = (64, 64)
TINY = {
    "rtmpose": RTMPoseOptions(CSPNeXtOptions(0.1, 0.25), size=SIZE, form="convolution"),
    "hrnet": HRNetOptions(width=8, modules=(1, 1, 1), size=SIZE),
    "vitpose": ViTPoseOptions(width=64, layers=2, heads=4, drop_path=0.0, size=SIZE),
}
RUN = DetectorRun(
    name="small",
    model=RTMPoseOptions(CSPNeXtOptions(0.1, 0.125), size=SIZE, form="convolution"),
    expected=Expected(minutes=1),
    optimiser=DetectorOptimiser(learning_rate=2e-3, warmup=2, clip=35.0),
    curriculum=CurriculumOptions(switches=(1 / 3, 2 / 3)),
    steps=12,
    batch_size=8,
    average=0.9,
    log_every=1,
    save_every=2,
)
CONFIGS = ("spinepose_s", "spinepose_m", "spinepose_l", "rtmpose_m", "hrnet_w32", "vitpose_b")


def pictures(count: int = 32, first: int = 0):
    return pictures_in_memory([drawn_picture(first + i) for i in range(count)])


def arrays_of(folder: Path, run: DetectorRun = RUN) -> dict[str, np.ndarray]:
    """The newest checkpoint's."""
    checkpoints = Checkpoints(folder / FOLDER, read_only=True, note=pytest.fail)
    state = checkpoints.restore(shapes_of(run)[1])
    checkpoints.close()
    assert state is not None
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


class StoppedError(Exception):
    """What stops a training in the tests."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    with jax.enable_x64(False):
        assert train_detector(RUN, pictures(), folder).steps == RUN.steps
    return folder


@pytest.mark.parametrize("last", [3, 9])
def test_a_stopped_training_ends_with_the_same_numbers(unbroken: Path, last: int, tmp_path: Path) -> None:
    seen = []

    def stop(done: int, means: dict[str, float]) -> None:
        seen.append(done)
        if done == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_detector(RUN, pictures(), tmp_path, progress=stop)
    told = []
    train_detector(RUN, pictures(), tmp_path, progress=lambda done, _: told.append(done))
    assert told[0] == last, "it went on from the checkpoint of the step before"
    left, right = arrays_of(unbroken), arrays_of(tmp_path)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def test_stages_change_crops_in_their_share_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from simspine_jax.detection import augmentation, curriculum

    made: dict[str, set[int]] = {"hard": set(), "medium": set(), "easy": set()}
    drawn = augmentation.DrawnCrop.__call__

    def counted(self, picture, random):
        name = next(n for n, s in curriculum.STAGES.items() if s.geometry == self.geometry)
        made[name].add(picture.frame)
        return drawn(self, picture, random)

    monkeypatch.setattr(augmentation.DrawnCrop, "__call__", counted)
    used = []
    augmented = curriculum.Stage.augment
    monkeypatch.setattr(
        curriculum.Stage, "augment", lambda self, *a: used.append(self.name) or augmented(self, *a)
    )
    train_detector(RUN, pictures(), tmp_path)
    assert used == ["hard"] * 4 + ["medium"] * 4 + ["easy"] * 4
    assert all(len(frames) == 32 for frames in made.values())


def test_the_average_holds_statistics_too_and_is_what_is_used(unbroken: Path) -> None:
    run, model, steps = load_trained_detector(unbroken)
    assert (run, steps) == (RUN, RUN.steps)
    checkpoints = Checkpoints(unbroken / FOLDER, read_only=True, note=pytest.fail)
    state = checkpoints.restore(shapes_of(RUN)[1])
    checkpoints.close()
    assert state is not None
    _, params, rest = nnx.split(model, nnx.Param, ...)
    for used, average, last in (
        (params, state.average, state.params),
        (rest, state.average_rest, state.rest),
    ):
        leaves = [jax.tree.leaves(x) for x in (used, average, last)]
        assert leaves[0]
        for a, b in zip(*leaves[:2], strict=True):
            np.testing.assert_array_equal(a, b)
        assert any((a != c).any() for a, c in zip(leaves[0], leaves[2], strict=True))


@pytest.mark.slow
def test_it_overfits(tmp_path: Path) -> None:
    """32 pictures, by the fastest kind; all kinds in their true sizes: ``benchmarks.detection_overfit``."""
    run = DetectorRun(
        name="small",
        model=TINY["rtmpose"],
        expected=Expected(minutes=1),
        optimiser=DetectorOptimiser(learning_rate=3e-3, warmup=10, clip=35.0),
        curriculum=CurriculumOptions(stages=("plain",), switches=()),
        steps=200,
        batch_size=16,
        average=0.9,
        save_every=200,
    )
    few = pictures()
    done = train_detector(run, few, tmp_path)
    scores = detector_scores(detect(Detector.of(done.model, run.model), few))
    assert scores.auc["all"] > 0.9
    assert scores.oks["all"].ap50 > 0.9


RECIPE = DetectorOptimiser(
    learning_rate=4e-3, weight_decay=0.05, schedule="cosine", begin=0.5, final=0.05, warmup=1000,
    warmup_from=1e-5, clip=35.0,
)  # fmt: skip
STEPPED = DetectorOptimiser(
    learning_rate=5e-4, schedule="steps", drops=(170 / 210, 200 / 210), warmup=500, warmup_from=1e-3
)
PUBLISHED = {
    "spinepose_s": dataclasses.replace(RECIPE, weight_decay=0.0),
    "spinepose_m": RECIPE,
    "spinepose_l": RECIPE,
    "rtmpose_m": RECIPE,
    "hrnet_w32": STEPPED,
    "vitpose_b": dataclasses.replace(STEPPED, weight_decay=0.1, clip=1.0, layer_decay=0.75),
}
"""As in MMPose's configs of these detectors."""


def test_the_recipes_are_the_published_ones() -> None:
    assert set(PUBLISHED) == set(CONFIGS)
    for name, recipe in PUBLISHED.items():
        run = load_detector_run(name)
        assert run.optimiser == recipe, name
        assert (run.batch_size, run.average) == (
            (1024, 0.9998) if recipe.final == 0.05 and recipe.schedule == "cosine" else (512, None)
        ), name
        rate = detector_rate(run.optimiser, run.steps)
        assert float(rate(0)) == pytest.approx(recipe.learning_rate * recipe.warmup_from, rel=1e-2)
        assert float(rate(run.steps)) == pytest.approx(
            recipe.learning_rate * (0.05 if recipe.schedule == "cosine" else 0.01), rel=1e-3
        )
    assert load_detector_run("vitpose_b").model.drop_path == 0.3
    cosine = load_detector_run("spinepose_m")
    rate = detector_rate(cosine.optimiser, 8000)
    assert float(rate(4000)) == pytest.approx(4e-3)
    assert float(rate(6000)) == pytest.approx(4e-3 * (0.05 + 0.95 / 2))


@pytest.mark.parametrize("name", CONFIGS)
def test_fine_tuning_is_as_the_paper_tells(name: str) -> None:
    """Section 4.1: ten epochs, both sets half of a batch, 2 % of SimSpine; Figure 5: 33,000 outdoors."""
    run = load_detector_run(f"{name}_ft")
    assert run.name == f"{name}_ft"
    assert run.model == load_detector_run(name).model
    assert (run.data.mode, run.data.share, run.data.fraction) == ("batch", 0.5, 0.02)
    assert run.steps * run.batch_size / 2 == pytest.approx(10 * 33_000, rel=1e-3)
    assert run.curriculum.stages == ("hard", "medium", "easy")
    with pytest.raises(FileFormatError, match="spinetrack"):
        open_crops(run)


def test_early_layers_of_a_transformer_take_smaller_steps() -> None:
    model = ViTPoseOptions(width=16, layers=12, heads=2, size=SIZE)
    run = dataclasses.replace(load_detector_run("vitpose_b"), model=model)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes_of(run)[1].params)
    scaled, _ = scaled_by_layer(0.75).update(grouped(params, run), optax.EmptyState(), None)
    flat = nnx.to_flat_state(ungrouped(scaled, params, run))
    found = {".".join(str(k) for k in path): np.unique(leaf.get_value()) for path, leaf in flat}
    # MMPose: layer i of 12 has 0.75^(12 - i), counted from 0, what is before them one more, the rest 1.
    wanted = {"patches.kernel": 13, "place": 13, "layers.0.fc1.kernel": 12, "layers.11.fc2.bias": 1,
              "norm.scale": 0, "final_layer.kernel": 0, "doublings.0.kernel": 0}  # fmt: skip
    for name, power in wanted.items():
        np.testing.assert_allclose(found[name], [0.75**power], rtol=1e-6, err_msg=name)


def test_a_transformers_places_do_not_decay() -> None:
    """MMPose's layer decay leaves ``pos_embed`` out."""
    params = nnx.state(build_detector(TINY["vitpose"]), nnx.Param)
    run = dataclasses.replace(load_detector_run("vitpose_b"), model=TINY["vitpose"])
    still = jax.tree.map(jnp.zeros_like, grouped(params, run))
    optimiser, groups = make_detector_optimiser(run), grouped(params, run)
    updates, _ = optimiser.update(still, optimiser.init(groups), groups)
    moved = dict(nnx.to_flat_state(ungrouped(updates, params, run)))
    assert not np.any(moved["place",].get_value())
    assert np.any(moved["patches", "kernel"].get_value())


def test_groups_come_back_as_they_were() -> None:
    params = nnx.state(build_detector(TINY["vitpose"]), nnx.Param)
    run = dataclasses.replace(load_detector_run("vitpose_b"), model=TINY["vitpose"])
    groups = grouped(params, run)
    assert {name.split("_")[1] for name in groups} == {"0", "1", "2", "3"}
    for a, b in zip(*(jax.tree.leaves(x) for x in (params, ungrouped(groups, params, run))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_is_that_of_adamw_weight_by_weight() -> None:
    """As optax's own on the weights one by one, with decay on kernels alone."""
    options = DetectorOptimiser(learning_rate=0.1, weight_decay=0.5, warmup=0, begin=1.0, clip=1.0)
    run = dataclasses.replace(RUN, optimiser=options)
    random = np.random.default_rng(0)
    params: Any = {
        n: jnp.asarray(random.normal(size=s)) for n, s in (("kernel", (3, 3, 2, 2)), ("scale", (2,)))
    }
    slopes = jax.tree.map(lambda leaf: leaf * 3, params)
    ours = make_detector_optimiser(run)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.1, weight_decay=0.5, mask={"kernel": True, "scale": False}),
    )
    groups, state, other = grouped(params, run), None, theirs.init(params)
    state = ours.init(groups)
    for _ in range(2):
        updates, state = ours.update(grouped(slopes, run), state, groups)
        wanted, other = theirs.update(slopes, other, params)
    found = ungrouped(updates, params, run)
    for name in params:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)


def test_a_batch_twice_as_large_has_the_same_loss_and_gradient() -> None:
    """SimCC's loss is a sum over people, and gradients are clipped: batches must not change that."""
    random = np.random.default_rng(0)
    crops = random.normal(size=(4, *SIZE, 3)).astype(np.float32)
    keypoints = random.uniform(5, 59, (4, K, 2)).astype(np.float32)
    told = []
    for times in (1, 2):
        run = dataclasses.replace(RUN, batch_size=4 * times)
        structure, state = initial_detector_state(build_detector(run.model), run)
        step = make_detector_step(structure, run, data_mesh())
        twice = [np.concatenate([x] * times) for x in (crops, keypoints, np.ones((4, K), bool))]
        told.append(step(state, *twice)[1])
    for name in ("loss", "gradient_norm"):
        # Float32 over sums of different lengths.
        assert float(told[0][name]) == pytest.approx(float(told[1][name]), rel=1e-3)


def test_the_pixels_of_the_run_are_what_the_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from simspine_jax.detection.photometric import normalise
    from simspine_jax.training.detector_step import _seen

    raw = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    bgr = PixelOptions("BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    np.testing.assert_allclose(_seen(normalise(raw), bgr), bgr.normalise(raw), atol=1e-4)
    np.testing.assert_array_equal(_seen(normalise(raw), PixelOptions()), normalise(raw))


def test_runs_survive_json_and_are_told_apart(tmp_path: Path) -> None:
    run = with_settings(
        load_detector_run("spinepose_s_short"),
        ["curriculum.stages=hard,easy", "curriculum.switches=0.4", "pixels.order=BGR", "model.size=128,96",
         "model.form=convolution", "average=none", "data.split=train[:50%]", "compute=bfloat16"],
    )  # fmt: skip
    write_detector_run(tmp_path / RUN_FILE, run)
    assert read_detector_run(tmp_path / RUN_FILE) == run
    with pytest.raises(FileFormatError, match="'rtmpose', which is not a lifter"):
        read_run(tmp_path / RUN_FILE)
    with pytest.raises(FileFormatError, match="none of a lifter"):
        load_run("spinepose_s")
    with pytest.raises(FileFormatError, match="none of a detector"):
        load_detector_run("simple_full")
    write_run(tmp_path / RUN_FILE, load_run("simple_full"))
    with pytest.raises(FileFormatError, match="'simple_baseline', which is not a detector"):
        load_trained_detector(tmp_path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("curriculum.switches=0.3,0.2", "can't be the switches"),
        ("curriculum.stages=hard,wild", "valid are hard, medium, easy, plain"),
        ("optimiser.layer_decay=0.5", "for a transformer"),
        ("batch_size=0", "valid is 1 or more"),
        ("pixels.order=GBR", "valid are RGB, BGR"),
        ("model.form=fast", "valid are unrolled, convolution"),
    ],
)
def test_wrong_settings_are_told(setting: str, says: str) -> None:
    with pytest.raises(SimspineError, match=says):
        with_settings(load_detector_run("spinepose_s"), [setting])


def test_other_runs_and_too_few_pictures_are_refused(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(SimspineError, match="another folder"):
        train_detector(dataclasses.replace(RUN, seed=4), pictures(), unbroken)
    with pytest.raises(SimspineError, match="had the count 32 of its data and now has 40"):
        train_detector(RUN, pictures(40), unbroken)
    with pytest.raises(ShapeError, match="Batches of 8 can't be made of 5 samples"):
        train_detector(RUN, pictures(5), tmp_path / "few")


def test_kept_weights_are_read_again_and_not_written_over(tmp_path: Path) -> None:
    model = build_detector(RUN.model, seed=5)
    keep_detector(RUN, model, tmp_path)
    _, read, steps = load_trained_detector(tmp_path)
    assert steps == 0
    crops = np.random.default_rng(2).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    a, b = (Detector.of(m, RUN.model)(crops) for m in (model, read))
    np.testing.assert_array_equal(a.score, b.score)
    with pytest.raises(SimspineError, match="holds a training"):
        keep_detector(RUN, model, tmp_path)
    with pytest.raises(SimspineError, match=r"holds weights that were imported and no training; .*--weights"):
        train_detector(RUN, pictures(), tmp_path)


@pytest.mark.slow
def test_a_training_can_begin_with_given_weights(unbroken: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=2, optimiser=DetectorOptimiser(learning_rate=1e-9, warmup=0))
    done = train_detector(run, pictures(), tmp_path, start=unbroken)
    kept = load_trained_detector(unbroken)[1]
    for (path, old), (_, new) in zip(
        *(nnx.to_flat_state(nnx.state(m, nnx.Param)) for m in (kept, done.model)), strict=True
    ):
        np.testing.assert_allclose(new.get_value(), old.get_value(), rtol=1e-5, atol=1e-7, err_msg=str(path))


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    keep_detector(RUN, build_detector(RUN.model), tmp_path / "kept")
    wider = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, keypoints=5))
    with pytest.raises(SimspineError, match=r"holds another detector than the run small: \d+ of its arrays"):
        train_detector(wider, pictures(), tmp_path / "wider", start=tmp_path / "kept")
    turned = dataclasses.replace(RUN, pixels=PixelOptions("BGR"))
    with pytest.raises(SimspineError, match=r"sees PixelOptions.*RGB.*sees PixelOptions.*BGR"):
        train_detector(turned, pictures(), tmp_path / "turned", start=tmp_path / "kept")
    # The folder is free for another run.
    assert not (tmp_path / "turned" / "run.json").exists()
    assert train_detector(RUN, pictures(), tmp_path / "turned", start=tmp_path / "kept").steps == RUN.steps


def test_no_training_begins_with_folded_normalisations(tmp_path: Path) -> None:
    model = build_detector(RUN.model)
    for _, part in nnx.iter_modules(model):
        if isinstance(part, Norm):
            part.bias.set_value(part.bias[...] + 0.5)
    keep_detector(RUN, model, tmp_path / "kept")
    with pytest.raises(SimspineError, match="folded into convolutions"):
        train_detector(RUN, pictures(), tmp_path / "other", start=tmp_path / "kept")


def test_weights_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    """Imported ones have the same run and no steps."""
    digests = set()
    for seed in (5, 6, 5):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        keep_detector(RUN, build_detector(RUN.model, seed=seed), folder)
        digests.add(open_detector(folder).digest)
    assert len(digests) == 2


class Oracle:
    """Finds what is true, some pixels off, in the order in which pictures come."""

    size, codec = SIZE, SimCC  # of which the map of the crops is told

    def __init__(self, truth, off: float) -> None:
        self._crops = [top_down(picture, SIZE) for picture in truth]
        self._off, self._done = off, 0

    def __call__(self, pixels: np.ndarray) -> Found:
        crops = self._crops[self._done : self._done + len(pixels)]
        self._done += len(crops)
        filled = [*crops, *[crops[-1]] * (len(pixels) - len(crops))]
        np.testing.assert_array_equal(pixels[: len(crops)], [crop.pixels for crop in crops])
        scale = np.array([np.linalg.norm(crop.matrix[0, :2]) for crop in filled])[:, None]
        points = np.stack([crop.keypoints for crop in filled])
        points[..., 0] += self._off * scale
        return Found(points, np.ones(points.shape[:2], np.float32))


def test_scores_are_what_they_say() -> None:
    truth = [drawn_picture(i) for i in range(37)]  # no multiple of a batch
    side = float(min(truth[0].box[2:]))
    truth[3] = dataclasses.replace(truth[3], area=math.nan)
    perfect, shifted = (
        detector_scores(detect(Oracle(truth, off), pictures_in_memory(truth))) for off in (0.0, 0.32 * side)
    )
    assert perfect.auc["all"] == pytest.approx(AUC_CEILING)
    assert perfect.pck["spine"] == 1
    # Dots of one grid: the mean pose is at most 5 px off along each axis, of a side of 88.
    assert AUC_CEILING - 0.1 < perfect.fixed_auc["all"] < AUC_CEILING
    assert perfect.oks["spine"].ap == pytest.approx(1)
    assert (perfect.pictures, perfect.with_area) == (37, 36)
    # Of the thresholds 0, 0.05, ... 0.95 the distance is below those from 0.35 on.
    assert shifted.auc["body"] == pytest.approx(13 / 20)
    assert shifted.pck["all"] == 0
    table = detector_table(RUN, perfect, split="test", source="drawn", steps=3)
    assert [row[0] for row in table.rows] == ["Body(17)", "Spine(9)", "All(37)"]
    assert "shorter side" in table.notes[0]
    with pytest.raises(ShapeError, match="no pictures"):
        detect(Oracle(truth, 0.0), pictures_in_memory([]))


def test_hidden_and_missed_keypoints_count_as_they_should() -> None:
    truth = [drawn_picture(0)]
    hidden = truth[0].visibility.copy()
    hidden[:17] = 0
    truth = [dataclasses.replace(truth[0], visibility=hidden)]
    found = detect(Oracle(truth, 0.0), pictures_in_memory(truth))
    found.found[0, 36] = np.nan
    scores = detector_scores(found)
    assert math.isnan(scores.auc["body"])
    assert scores.auc["all"] == pytest.approx(AUC_CEILING * 19 / 20)


def test_the_command_prints_scores_and_draws(
    unbroken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    monkeypatch.setattr("simspine_jax.datasets.open_pictures", lambda *a: pictures(3, 100))
    parser = argparse.ArgumentParser()
    cli_training.add_evaluate_arguments(parser)
    words = [str(unbroken), "-o", str(tmp_path / "scores.csv"), "--pictures", str(tmp_path / "sheets")]
    assert cli_training.evaluate(parser.parse_args(words), pytest.fail) == 0
    assert "AUC" in capsys.readouterr().out
    assert "Spine(9)" in (tmp_path / "scores.csv").read_text()
    sheet = decode_jpeg((tmp_path / "sheets" / "detections.jpg").read_bytes())
    assert sheet.shape == (256, 8 * 192, 3)
    with pytest.raises(SimspineError, match="--errors was given for a detector"):
        cli_training.evaluate(parser.parse_args([str(unbroken), "--errors"]), pytest.fail)
    with pytest.raises(SimspineError, match="--input was given for a detector"):
        cli_training.evaluate(parser.parse_args([str(unbroken), "--input", "truth"]), pytest.fail)
    with pytest.raises(SimspineError, match="has no known form"):
        cli_training.evaluate(parser.parse_args([str(unbroken), "--on", "somewhere"]), pytest.fail)


def test_the_split_that_is_told_is_the_one_that_was_opened(
    unbroken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    opened: list[str] = []

    def open_split(config: str, split: str, data_dir: Path | None):
        opened.append(split)
        return pictures(3, 100)

    monkeypatch.setattr("simspine_jax.datasets.open_pictures", open_split)
    monkeypatch.setattr("simspine_jax.datasets.sources.open_pictures", open_split)
    monkeypatch.chdir(tmp_path)
    export_pictures(Path("own.json"), Path("own"), pictures(3, 100))
    own = "own.json:own"
    parser = argparse.ArgumentParser()
    cli_training.add_evaluate_arguments(parser)

    def told(*words: str) -> str:
        assert cli_training.evaluate(parser.parse_args([str(unbroken), *words]), lambda text: None) == 0
        return capsys.readouterr().out

    for words, split in (
        ((), "test"), (("--split", "train"), "train"), (("--on", "tfds:other"), "test"),
        (("--on", "tfds:other", "--split", "train"), "train"),
        (("--on", "tfds:other:train[:10%]"), "train[:10%]"),
    ):  # fmt: skip
        assert f"split {split}, 3 people" in told(*words)
        assert opened.pop() == split
    assert f"{own}, 3 people" in told("--on", own)
    for text, why in ((own, "has no splits"), ("tfds:other:train[:10%]", "names its split itself")):
        with pytest.raises(SimspineError, match="--split has no effect on .*" + why):
            told("--on", text, "--split", "test")
    with pytest.raises(UnknownNameError, match=r"Split 'val' is not in .*; it has: train, test"):
        told("--on", "h36m:frames:release", "--split", "val")
    damaged = [*pictures(3, 100), dataclasses.replace(drawn_picture(9), jpeg=b"no picture")]
    monkeypatch.setattr("simspine_jax.datasets.open_pictures", lambda *a: pictures_in_memory(damaged))
    notes: list[str] = []
    assert cli_training.evaluate(parser.parse_args([str(unbroken)]), notes.append) == 0
    assert "1 people, whose pictures can't be read" in capsys.readouterr().out
    assert [note.partition(":")[0] for note in notes] == ["Picture 3"]


def test_the_command_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import argparse

    config = tmp_path / "mine.py"
    config.write_text(
        "from simspine_jax.training.detector_run import *\n"
        "from simspine_jax.training.run import Expected\n"
        "from simspine_jax.detection.rtmpose import RTMPoseOptions\n"
        "from simspine_jax.detection.cspnext import CSPNeXtOptions\n"
        "RUN = DetectorRun(name='mine', model=RTMPoseOptions(CSPNeXtOptions(0.1, 0.125), size=(64, 64)),\n"
        "    expected=Expected(minutes=1), optimiser=DetectorOptimiser(learning_rate=1e-3), steps=2,\n"
        "    batch_size=8, log_every=1, save_every=2)\n"
    )
    monkeypatch.setattr("simspine_jax.training.detectors.open_pictures", lambda *a: pictures(16))
    parser = argparse.ArgumentParser()
    cli_training.add_train_arguments(parser)
    words = [str(config), "--steps", "4", "-o", str(tmp_path / "out"), "--quiet"]
    assert cli_training.train(parser.parse_args(words), pytest.fail) == 0
    assert load_trained_detector(tmp_path / "out")[2] == 4
    with pytest.raises(SimspineError, match="--weights was given for a lifter"):
        cli_training.train(parser.parse_args(["simple_full", "--weights", "x"]), pytest.fail)


def test_two_sets_are_mixed_where_the_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pictures(16), pictures(40, 50)
    monkeypatch.setattr("simspine_jax.training.detectors.open_pictures", lambda *a: first)
    monkeypatch.setattr("simspine_jax.training.detectors.open_source", lambda *a, **k: second)
    assert open_crops(RUN) is first
    assert open_crops(with_settings(RUN, ["data.source=some.json:folder"])) is second
    run = with_settings(RUN, ["data.second=h36m:frames:release", "data.fraction=0.5", "data.share=0.25"])
    crops = open_crops(run)
    batch = next(crops.batches(8, 0, upright_crop))
    assert (np.asarray(batch.index) >= 16).sum() == 2
    assert isinstance(crops, PictureMix)
    assert len(crops.second) == 20


def test_pictures_are_drawn_beside_their_truth(tmp_path: Path) -> None:
    truth = [drawn_picture(i) for i in range(2)]
    few = pictures_in_memory(truth)
    path = draw_detections(few, detect(Oracle(truth, 0.0), few), tmp_path)
    sheet = decode_jpeg(path.read_bytes()).astype(int)
    left, right = sheet[:256, :192], sheet[:256, 192:384]
    # The same keypoints at both sides: what differs is JPEG's.
    assert np.abs(left - right).mean() < 2

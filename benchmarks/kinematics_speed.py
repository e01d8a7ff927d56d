"""Speed of forward and inverse kinematics, alone and beside their peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import simspine_jax as ssj
from benchmarks.metrics import Measurement, interleaved
from benchmarks.peers import MujocoLoop, OpenSimLoop, objective_and_rmse, opensim_tool
from benchmarks.workplace import RATE_HZ, SYNTHETIC, Workplace, official_setup, require_opensim
from simspine_jax.io import MarkerTrajectory, write_trc
from simspine_jax.kinematics.forward import Engine, expand_qpos, forward_kinematics
from simspine_jax.kinematics.model import SpineModel, converted_path
from simspine_jax.motions import read_motion

BATCH = 4096
BATCHES = (256, 65536)
ACCELERATOR_BATCHES = (4096, 65536, 262144, 1048576)
ACCELERATOR_CLIPS = (16, 128, 1024)
IK_FRAMES = 4096
OPENSIM_POSES = 2000
OPENSIM_IK_FRAMES = 50
CLIPS, CLIP_FRAMES = 16, 250
# As in the README.
SMOOTHING = ssj.Smoothing(acceleration=1e-9, rate_hz=RATE_HZ)
RANDOM_POSES = "synthetic: random admissible poses of the spine model"


def fk_rates(place: Workplace) -> Iterator[Measurement]:
    """Poses per second of both engines at several batch sizes, markers and bodies."""
    model = place.spine
    main = place.size(BATCH, 64)
    yield Measurement(
        "kinematics/fk_poses_per_s", _fk_rate(place, "levels", main), RANDOM_POSES, f"Batch {main}."
    )
    yield Measurement(
        "kinematics/fk_poses_per_s_mjx", _fk_rate(place, "mjx", main), RANDOM_POSES, f"Batch {main}."
    )
    batches = ACCELERATOR_BATCHES if jax.default_backend() != "cpu" else BATCHES
    for batch in (16,) if place.quick else batches:
        for engine in ("levels", "mjx"):
            rate = _fk_rate(place, engine, batch)
            flops = _flops(forward(engine), model, _poses(model, batch)) if engine == "levels" else None
            detail = _arithmetic(flops, rate / batch) if jax.default_backend() != "cpu" and flops else {}
            key = f"kinematics/fk_poses_per_s/{engine}/{batch}"
            yield Measurement(key, rate, RANDOM_POSES, f"Batch {batch}.", detail)


def forward(engine: Engine) -> Callable:
    """The engine as one program; on a CPU, MJX's needs XLA's fusion switched off (see ``forward``)."""
    function = partial(forward_kinematics, engine=engine)
    if engine == "mjx" and jax.default_backend() == "cpu":
        return jax.jit(function, compiler_options={"xla_disable_hlo_passes": "fusion"})
    return jax.jit(function)


def _poses(model: SpineModel, count: int) -> jax.Array:
    rng = np.random.default_rng(1)
    low, high = np.asarray(model.lower, float), np.asarray(model.upper, float)
    low, high = np.where(np.isfinite(low), low, -1.5), np.where(np.isfinite(high), high, 1.5)
    return jnp.asarray(rng.uniform(low, high, (count, model.n_free)), model.dtype)


def _fk_rate(place: Workplace, engine: Engine, batch: int) -> float:
    run, model, q = forward(engine), place.spine, _poses(place.spine, batch)
    inner = max(1, 8192 // batch)  # small batches many times, so that the clock's grain doesn't count

    def repeated() -> None:
        for _ in range(inner):
            jax.block_until_ready(run(model, q))

    return inner * batch / interleaved({"fk": repeated}, place.size(10, 1))["fk"]


def fk_vs_mujoco(place: Workplace) -> Iterator[Measurement]:
    """Our batch beside a Python loop over MuJoCo's C library, the same poses."""
    batch = place.size(BATCH, 64)
    model = place.spine
    q = _poses(model, batch)
    loop = MujocoLoop(spine_mjcf(place), np.asarray(jax.jit(expand_qpos)(model, q), np.float64))
    run = forward("levels")
    best = interleaved(
        {"ours": lambda: jax.block_until_ready(run(model, q)), "peer": loop}, place.size(10, 1)
    )
    loop()
    sites = np.array(model.topology.marker_sites, int)
    off = np.abs(np.asarray(run(model, q).markers[-1]) - loop.data.site_xpos[sites]).max()
    yield _ratio(
        "kinematics/fk_vs_mujoco_c", best, batch, batch, "mj_kinematics float64, one thread", float(off)
    )


def fk_vs_opensim(place: Workplace) -> Iterator[Measurement]:
    """Our batch beside a loop over OpenSim's model; OpenSim takes the first poses of the batch."""
    require_opensim()
    batch, count = place.size(BATCH, 64), place.size(OPENSIM_POSES, 20)
    model = place.spine
    q = _poses(model, batch)
    loop = OpenSimLoop(place.spine_source, model, np.asarray(q, np.float64)[:count])
    run = forward("levels")
    best = interleaved({"ours": lambda: jax.block_until_ready(run(model, q)), "peer": loop}, place.repeats)
    off = np.abs(np.asarray(run(model, q).markers[count - 1]) - loop.last_markers(model.marker_names)).max()
    yield _ratio("kinematics/fk_vs_opensim", best, batch, count, "State.setQ and realizePosition", float(off))


def _ratio(key: str, best: dict[str, float], ours: int, theirs: int, peer: str, off: float) -> Measurement:
    """Our rate over the peer's, which must have computed the same markers to be one."""
    rates = {
        "poses_per_s": ours / best["ours"],
        "peer_poses_per_s": theirs / best["peer"],
        "marker_difference_m": off,
    }
    wrong = "" if off < 1e-5 else f"the two differ by {off:.2g} m"
    note = f"Levels engine, float32, batch {ours}, all cores; peer: {peer}."
    return Measurement(
        key, rates["poses_per_s"] / rates["peer_poses_per_s"], RANDOM_POSES, note, rates, wrong
    )


def spine_mjcf(place: Workplace) -> Path:
    """The converted spine model's MJCF."""
    if place.converted is not None:
        return place.converted.with_suffix(".xml")
    source = place.spine_source
    return converted_path(source.osim, source.markers, ())


def solve(model: SpineModel, markers: jax.Array, **options) -> ssj.IKSolution:
    """One solve, finished."""
    return jax.block_until_ready(ssj.solve_ik(model, markers, **options))


def ik_rate(place: Workplace) -> Iterator[Measurement]:
    """Frames per second of per-frame inverse kinematics with the project's default objective."""
    counts = [place.size(IK_FRAMES, 32)]
    if jax.default_backend() != "cpu" and not place.quick:
        counts += [n for n in ACCELERATOR_BATCHES if n > IK_FRAMES]
    for count in counts:
        markers = jnp.asarray(place.clip(count).markers)
        solution = solve(place.spine, markers)
        best = interleaved({"ik": partial(solve, place.spine, markers)}, place.repeats)
        rate = count / best["ik"]
        detail = _solved(solution)
        if jax.default_backend() != "cpu":
            detail |= _arithmetic(_ik_flops(place.spine) * detail["mean_iterations"], rate)
        note = f"{count} frames, float32."
        if count == counts[0]:
            yield Measurement("kinematics/ik_frames_per_s", rate, SYNTHETIC, note, detail)
        if len(counts) > 1:
            yield Measurement(f"kinematics/ik_frames_per_s/{count}", rate, SYNTHETIC, note, detail)


def _solved(solution: ssj.IKSolution) -> dict:
    return {
        "mean_iterations": float(jnp.mean(solution.iterations)),
        "converged_share": float(jnp.mean(solution.status == ssj.IKStatus.CONVERGED)),
        "marker_rmse_mm": 1e3 * float(jnp.sqrt(jnp.mean(solution.marker_rmse**2))),
    }


def ik_vs_opensim(place: Workplace) -> Iterator[Measurement]:
    """Our solve beside OpenSim's tool with the same objective, on the same clip."""
    require_opensim()
    count, few = place.size(IK_FRAMES, 64), place.size(OPENSIM_IK_FRAMES, 4)
    clip, setup, source = place.clip(count), official_setup(False), place.spine_source
    markers = jnp.asarray(clip.markers)
    trajectory, motion = place.folder / "synthetic.trc", place.folder / "synthetic.mot"
    measured = clip.markers.astype(np.float64)
    write_trc(trajectory, MarkerTrajectory(place.spine.marker_names, clip.times, measured, RATE_HZ))
    ours, theirs = [], []
    solution = solve(place.spine, markers, setup=setup)
    for _ in range(place.size(3, 1)):
        ours.append(
            interleaved({"ik": partial(solve, place.spine, markers, setup=setup)}, place.size(2, 1))["ik"]
        )
        theirs.append(opensim_tool(source, trajectory, motion, few))
    rate, peer = count / min(ours), few / min(theirs)
    with jax.enable_x64(True):
        model = place.spine_float64()
        reference = read_motion(model, motion)
        n = len(reference.times)
        own, own_rmse = objective_and_rmse(model, setup, measured[:n], np.asarray(solution.q, np.float64)[:n])
        other, other_rmse = objective_and_rmse(model, setup, measured[:n], reference.q)
    detail = {
        "frames_per_s": rate, "opensim_frames_per_s": peer, "opensim_frames": n,
        "objective_ratio_max": float(np.max(own / other)),
        "objective_ratio_median": float(np.median(own / other)),
        "marker_rmse_mm": 1e3 * _rms(own_rmse), "opensim_marker_rmse_mm": 1e3 * _rms(other_rmse),
    }  # fmt: skip
    note = (
        f"Both minimise OpenSim's objective with the official marker weights and no coordinate task; ours "
        f"all {count} frames in float32 on all cores, the tool (accuracy 1e-5, one thread) the first {n}."
    )
    yield Measurement("kinematics/ik_vs_opensim_tool", rate / peer, SYNTHETIC, note, detail)
    worst = "OpenSim's tool at accuracy 1e-5 is the reference here."
    yield Measurement(
        "kinematics/ik_vs_opensim_tool_objective_ratio_max", detail["objective_ratio_max"], SYNTHETIC, worst
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def clip_cost(place: Workplace) -> Iterator[Measurement]:
    """The whole-clip solve, its per-frame start included, over the per-frame solve."""
    clips = [place.size(CLIPS, 2)]
    if jax.default_backend() != "cpu" and not place.quick:
        clips += [n for n in ACCELERATOR_CLIPS if n > CLIPS]
    frames = place.size(CLIP_FRAMES, 16)
    for n in clips:
        flat = place.clip(n * frames).markers
        markers = jnp.asarray(flat.reshape(n, frames, *flat.shape[1:]))
        smooth = partial(solve, place.spine, markers, smoothing=SMOOTHING)
        functions = {"clip": smooth, "frames": partial(solve, place.spine, markers)}
        best = interleaved(functions, place.repeats)
        rate = n * frames / best["clip"]
        detail = {"clip_frames_per_s": rate, "frames_per_s": n * frames / best["frames"], **_solved(smooth())}
        note = f"{n} clips of {frames} frames, acceleration {SMOOTHING.acceleration:g}, float32."
        if n == clips[0]:
            value = best["clip"] / best["frames"]
            yield Measurement("kinematics/clip_ik_cost_ratio", value, SYNTHETIC, note, detail)
        if len(clips) > 1:
            yield Measurement(f"kinematics/clip_ik_frames_per_s/{n * frames}", rate, SYNTHETIC, note, detail)


def gradient_cost(place: Workplace) -> Iterator[Measurement]:
    """A solve with its backward pass over the solve alone."""
    count = place.size(IK_FRAMES, 32)
    model, markers = place.spine, jnp.asarray(place.clip(count).markers)
    cotangent = jax.random.normal(jax.random.key(2), (count, model.n_free))
    loss = jax.value_and_grad(lambda x: jnp.sum(cotangent * ssj.solve_ik(model, x).q))
    functions = {
        "solve": partial(solve, model, markers),
        "both": lambda: jax.block_until_ready(loss(markers)),
    }
    best = interleaved(functions, place.repeats)
    finite = bool(jnp.all(jnp.isfinite(loss(markers)[1])))
    detail = {"solve_s": best["solve"], "solve_and_backward_s": best["both"]}
    note = f"jax.value_and_grad through solve_ik, markers as the input; {count} frames, float32."
    failed = "" if finite else "the gradient is not finite"
    ratio = best["both"] / best["solve"]
    yield Measurement("kinematics/ik_gradient_cost_ratio", ratio, SYNTHETIC, note, detail, failed)


def _ik_flops(model: SpineModel) -> float:
    """Operations of one iteration of a frame: normal equations as XLA counts them, and a Cholesky solve."""
    from simspine_jax.kinematics.forward import scaled_frames
    from simspine_jax.kinematics.residuals import Slice, Structure, normal_equations

    width, n, k = 128, model.n_free, model.n_markers
    frames = scaled_frames(model, None, None, model.dtype)
    data = Slice(jnp.zeros((k, 3, width)), jnp.ones((k, width)), jnp.zeros((0, width)), jnp.zeros(0), frames)
    whole = _flops(jax.jit(lambda d, q: normal_equations(model, Structure(), Slice(*d), q)),
                   (data.targets, data.weights, data.task_targets, data.task_weights, data.frames),
                   jnp.zeros((n, width)))  # fmt: skip
    return whole / width + n**3 / 3 + 2 * n**2


def _flops(function: Callable, *arguments) -> float:
    cost = function.lower(*arguments).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost or {}).get("flops", 0.0))


def _arithmetic(flops: float, per_second: float) -> dict:
    """Arithmetic achieved, and its share of what a large float32 matrix product achieves here, now."""
    a = jnp.ones((8192, 8192), jnp.float32)
    product = jax.jit(partial(jnp.matmul, precision="highest"))
    best = interleaved({"product": lambda: jax.block_until_ready(product(a, a))}, 5)
    limit = 2 * 8192**3 / best["product"]
    return {
        "gflops": 1e-9 * flops * per_second,
        "matmul_gflops": 1e-9 * limit,
        "share": flops * per_second / limit,
    }

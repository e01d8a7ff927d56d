"""What the workloads of the kinematics suite share: models, synthetic clips and real trials."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import ROOT, SkippedError
from simspine_jax.assets import simple_model_path, spine_model_path
from simspine_jax.errors import SimspineError
from simspine_jax.io import IKSetup, MarkerTask, read_ik_setup
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.skeleton import OFFICIAL_COORDINATE_TASKS, OFFICIAL_MARKER_WEIGHTS, write_paper_marker_set

DATA = ROOT.parent / "shared" / "data"
RATE_HZ = 50.0
NOISE_M = 0.005
SEED = 0
SYNTHETIC = (
    f"synthetic: motion of all free coordinates of the spine model, seed {SEED}, {1e3 * NOISE_M:g} mm noise"
)


@dataclass(frozen=True)
class Source:
    """An OpenSim model and the marker set that takes the place of its own."""

    osim: Path
    markers: Path | None = None


@dataclass(frozen=True)
class Trial:
    """A real recording with its model, OpenSim's setup and OpenSim's converged solution."""

    name: str
    osim: Path
    markers: Path
    setup: Path
    converged: Path

    @property
    def read_setup(self) -> IKSetup:
        """The tasks of the setup."""
        return read_ik_setup(self.setup)


@dataclass(frozen=True, eq=False)
class Clip:
    """A synthetic clip: true free coordinates, and markers with noise, m."""

    times: NDArray[np.float64]
    q: NDArray[np.float64]
    markers: NDArray[np.float32]


class Workplace:
    """Models and data, each made when first asked for; ``quick`` shrinks every size to try the code."""

    def __init__(self, *, quick: bool = False, model: Path | None = None) -> None:
        self.quick = quick
        self.converted = model
        self._float64: SpineModel | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="simspine-bench-")
        self.folder = Path(self._folder.name)

    def size(self, full: int, quick: int) -> int:
        """The size of this run."""
        return quick if self.quick else full

    @property
    def repeats(self) -> int:
        """Rounds of a timing."""
        return self.size(5, 1)

    @cached_property
    def paper_markers(self) -> Path:
        """The paper's marker set as a file."""
        path = self.folder / "paper_markers.xml"
        write_paper_marker_set(path)
        return path

    @property
    def spine_source(self) -> Source:
        """The 62-coordinate model as OpenSim has it."""
        with _skipping():
            return Source(spine_model_path(), self.paper_markers)

    @cached_property
    def spine(self) -> SpineModel:
        """The spine model with the paper's markers, float32."""
        import jax.numpy as jnp

        with _skipping():
            if self.converted is not None:
                return load_model(self.converted, dtype=jnp.float32)
            require_opensim()
            return load_model(spine_model_path(), self.paper_markers, dtype=jnp.float32)

    def spine_float64(self) -> SpineModel:
        """The same in float64; needs ``jax.enable_x64``. One for all, as programs are compiled for each."""
        if self._float64 is None:
            self._float64 = self._load_float64()
        return self._float64

    def _load_float64(self) -> SpineModel:
        import jax.numpy as jnp

        with _skipping():
            if self.converted is not None:
                return load_model(self.converted, dtype=jnp.float64)
            require_opensim()
            return load_model(spine_model_path(), self.paper_markers, dtype=jnp.float64)

    def clip(self, n_frames: int, seed: int = SEED) -> Clip:
        """A synthetic clip of the spine model."""
        import jax

        from simspine_jax.capture import add_marker_noise, synthetic_motion
        from simspine_jax.kinematics.forward import forward_kinematics

        q = synthetic_motion(self.spine, n_frames, RATE_HZ, seed)
        forward = jax.jit(lambda model, x: forward_kinematics(model, x).markers)
        # In parts, so that long clips compile the program of one size and keep little in memory.
        width = min(n_frames, 4096)
        parts = [forward(self.spine, q[i : i + width]) for i in range(0, n_frames, width)]
        keys = jax.random.split(jax.random.key(seed), len(parts))
        noisy = [np.asarray(add_marker_noise(x, NOISE_M, key)) for x, key in zip(parts, keys, strict=True)]
        return Clip(np.arange(n_frames) / RATE_HZ, np.asarray(q, np.float64), np.concatenate(noisy))

    def sources(self) -> dict[str, Source]:
        """The five models of the parity rows."""
        data = shared_data()
        with _skipping():
            found = {
                "spine": self.spine_source,
                "simple": Source(simple_model_path()),
                "pose2sim_demo": Source(data / "pose2sim_demo" / "model.osim"),
                "pose2sim_lstm": Source(data / "pose2sim_demo" / "model_lstm_scaled.osim"),
                "gait2392": Source(data / "gait2392" / "model.osim"),
            }
        return {name: found[name] for name in ("simple", "gait2392")} if self.quick else found

    def trials(self) -> list[Trial]:
        """The real recordings that come with a converged solution of OpenSim 4.6 (accuracy 1e-9)."""
        data = shared_data()
        gait, demo = data / "gait2392", data / "pose2sim_demo"
        found = [
            Trial("gait2392", gait / "model.osim", gait / "markers.trc", gait / "IK_Setup.xml",
                  gait / "ik_opensim46_acc1e-9.mot"),
            Trial("pose2sim_demo", demo / "model.osim", demo / "markers.trc", demo / "IK_Setup_Body25b.xml",
                  demo / "ik_body25b_opensim46.mot"),
            Trial("pose2sim_lstm", demo / "model_lstm_scaled.osim", demo / "markers_lstm.trc",
                  demo / "IK_Setup_LSTM.xml", demo / "ik_lstm_opensim46.mot"),
        ]  # fmt: skip
        return found[:1] if self.quick else found


def official_setup(tasks: bool) -> IKSetup:
    """OpenSim's objective with the official weights, with or without the official coordinate task."""
    from simspine_jax.io import CoordinateTask

    markers = tuple(MarkerTask(name, weight) for name, weight in OFFICIAL_MARKER_WEIGHTS.items())
    pulls = tuple(
        CoordinateTask(t.coordinate, t.weight, value_type="manual_value", value=t.target)
        for t in (OFFICIAL_COORDINATE_TASKS if tasks else ())
    )
    return IKSetup(markers, pulls)


def require_opensim() -> None:
    """Skips what needs OpenSim where it is not installed."""
    if importlib.util.find_spec("opensim") is None:
        raise SkippedError("OpenSim is not installed")


def shared_data() -> Path:
    """The folder of real trials beside the checkout."""
    if not DATA.is_dir():
        raise SkippedError("the real trials (../shared/data beside the checkout) are not on this machine")
    return DATA


@contextlib.contextmanager
def _skipping() -> Iterator[None]:
    """What can't be fetched or converted here is skipped with the library's own sentence."""
    try:
        yield
    except SimspineError as error:
        raise SkippedError(str(error)) from error

"""OpenSim's conversions and scalings in a process of their own.

OpenSim's C++ can crash or hang on a broken file. In a child process that becomes one `SimspineError`; the
calling process never loads OpenSim, and a script that loads models needs no ``__main__`` guard.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from simspine_jax import errors
from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError, one_line

# OpenSim's time on the largest public models is seconds; what takes this long has hung.
TIMEOUT_S = 600.0


SCALING_PREFIX = ".scaling-"
"""Of folders beside a scaled model in which it is made; a kill leaves them."""


def convert_isolated(
    model: Path,
    target: Path,
    *,
    markers: str | Path | None = None,
    meshes: str | Path | None = None,
    ignore_constraints: Collection[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Converts ``model`` to ``target`` (``.xml``) and its sidecar in a child process.

    With a folder of ``meshes``, those that the model names go to ``meshes/`` beside the target. All files
    appear whole or not at all, the sidecar last; processes that convert to one target at the same
    time don't disturb each other.

    Raises:
        MissingDependencyError: OpenSim or the converter is not installed.
        FileFormatError: OpenSim can't read the model, crashes on it or takes longer than ``timeout_s``.
        SimspineError: whatever else the conversion raises, as the subclass that it raised.
    """
    _require(f"Converting {model}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            _run(_conversion(model, made, markers, meshes, ignore_constraints), model, made.parent, timeout_s)
            _move_meshes(made.parent / "meshes", target.parent / "meshes")
            # The sidecar tells that the model is there, so it moves last.
            os.replace(made, target)
            os.replace(made.with_suffix(".json"), target.with_suffix(".json"))
    except OSError as error:
        raise _unwritable(target.parent, error) from None


def scale_isolated(
    model: Path,
    target: Path,
    factors: Mapping[str, Sequence[float]],
    *,
    mass_kg: float,
    preserve_mass_distribution: bool = True,
    markers: str | Path | None = None,
    marker_offsets: Mapping[str, Sequence[float]] | None = None,
    name: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Writes ``model``, scaled by OpenSim, to ``target`` (``.osim``) in a child process.

    Args:
        model: the generic model (``.osim``).
        target: the scaled model, which appears whole or not at all.
        factors: x, y and z factors by body; bodies that are not named keep their size.
        mass_kg: of the scaled model.
        preserve_mass_distribution: whether bodies keep their shares of the mass.
        markers: a marker set (XML) that takes the place of the model's own markers; it is scaled too.
        marker_offsets: added to the scaled markers' locations, metres in their bodies' frames.
        name: of the scaled model; default: the generic model's.
        timeout_s: after which OpenSim is taken to have hung.

    Raises:
        MissingDependencyError: OpenSim or the converter is not installed.
        FileFormatError: OpenSim can't read or scale the model, crashes on it or takes too long.
        SimspineError: whatever else the scaling raises, as the subclass that it raised.
    """
    _require(f"Scaling {model}")
    request = {
        "factors": {body: [float(x) for x in row] for body, row in factors.items()},
        "mass_kg": float(mass_kg),
        "preserve_mass_distribution": preserve_mass_distribution,
        "markers": None if markers is None else str(Path(markers).resolve()),
        "marker_offsets": {k: [float(x) for x in row] for k, row in (marker_offsets or {}).items()},
        "name": name,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=SCALING_PREFIX, dir=target.parent) as folder:
            made, asked = Path(folder).resolve() / target.name, Path(folder).resolve() / "request.json"
            asked.write_text(json.dumps(request), encoding="utf-8")
            command = ["osim2mjcf.opensim_scale", str(model.resolve()), str(made), str(asked)]
            _run(command, model, made.parent, timeout_s)
            os.replace(made, target)
    except OSError as error:
        raise _unwritable(target.parent, error) from None


def _require(purpose: str) -> None:
    for package in ("opensim", "osim2mjcf"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "opensim", purpose)


def _unwritable(folder: Path, error: OSError) -> SimspineError:
    reason = error.strerror or type(error).__name__
    return SimspineError(
        f"{folder} can't be written ({reason}); choose another folder, which for the cache "
        "SIMSPINE_CACHE does"
    )


def _move_meshes(made: Path, target: Path) -> None:
    if made.is_dir():
        target.mkdir(exist_ok=True)
        for mesh in made.iterdir():
            os.replace(mesh, target / mesh.name)


def _conversion(
    model: Path,
    made: Path,
    markers: str | Path | None,
    meshes: str | Path | None,
    ignore_constraints: Collection[str],
) -> list[str]:
    """The module that converts, and its arguments."""
    command = ["osim2mjcf", str(model.resolve()), str(made.resolve())]
    if markers is not None:
        command += ["--markers", str(Path(markers).resolve())]
    if meshes is not None:
        command += ["--meshes", str(Path(meshes).resolve())]
    # One word, so that a constraint's name that begins with a dash is not read as an option.
    return command + [f"--ignore-constraint={name}" for name in ignore_constraints]


def _run(command: list[str], model: Path, folder: Path, timeout_s: float) -> None:
    """Runs a module of the converter on a model; raises what it reports."""
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", *command],
            cwd=folder,  # OpenSim may leave a log in its working folder
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise FileFormatError(
            f"OpenSim did not finish reading {model} within {timeout_s:g} s, so the file is likely damaged; "
            "valid is a model that OpenSim opens"
        ) from None
    _check(child, model)


def _check(child: subprocess.CompletedProcess[str], model: Path) -> None:
    """Raises the error that the child reported, or one for a child that died without a report."""
    report = _report(child.stdout)
    if "error" in report:
        kind = getattr(errors, report["error"], SimspineError)
        # Subclasses build their sentence from parts; here it is already whole.
        error = kind.__new__(kind)
        error.args = (report["message"],)
        raise error
    if child.returncode == 0 and report:
        return
    if child.returncode < 0:
        raise FileFormatError(
            f"OpenSim crashed on {model} ({_signal_name(-child.returncode)}), so the file is likely damaged; "
            "valid is a model that OpenSim opens"
        )
    last = (child.stderr.strip().splitlines() or ["no message"])[-1].strip()
    raise FileFormatError(
        f"{model} can't be converted or scaled: {one_line(last)}; valid is a model that OpenSim opens"
    )


def _report(text: str) -> dict[str, str]:
    try:
        report = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return report if isinstance(report, dict) else {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""OpenSim conversions in a process of their own.

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
from collections.abc import Collection
from pathlib import Path

from simspine_jax import errors
from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError, one_line

# OpenSim's time on the largest public models is seconds; what takes this long has hung.
TIMEOUT_S = 600.0


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
    for package in ("opensim", "osim2mjcf"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "opensim", f"Converting {model}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            _run(model, made, markers, meshes, ignore_constraints, timeout_s)
            _move_meshes(made.parent / "meshes", target.parent / "meshes")
            # The sidecar tells that the model is there, so it moves last.
            os.replace(made, target)
            os.replace(made.with_suffix(".json"), target.with_suffix(".json"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SimspineError(
            f"{target.parent} can't be written ({reason}); choose another folder, which for the cache "
            "SIMSPINE_CACHE does"
        ) from None


def _move_meshes(made: Path, target: Path) -> None:
    if made.is_dir():
        target.mkdir(exist_ok=True)
        for mesh in made.iterdir():
            os.replace(mesh, target / mesh.name)


def _run(
    model: Path,
    made: Path,
    markers: str | Path | None,
    meshes: str | Path | None,
    ignore_constraints: Collection[str],
    timeout_s: float,
) -> None:
    command = [sys.executable, "-P", "-m", "osim2mjcf", str(model.resolve()), str(made.resolve())]
    if markers is not None:
        command += ["--markers", str(Path(markers).resolve())]
    if meshes is not None:
        command += ["--meshes", str(Path(meshes).resolve())]
    # One word, so that a constraint's name that begins with a dash is not read as an option.
    command += [f"--ignore-constraint={name}" for name in ignore_constraints]
    try:
        child = subprocess.run(
            command,
            cwd=made.parent,  # OpenSim may leave a log in its working folder
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
    if child.returncode == 0 and "mjcf" in report:
        return
    if "error" in report:
        kind = getattr(errors, report["error"], SimspineError)
        # Subclasses build their sentence from parts; here it is already whole.
        error = kind.__new__(kind)
        error.args = (report["message"],)
        raise error
    if child.returncode < 0:
        raise FileFormatError(
            f"OpenSim crashed on {model} ({_signal_name(-child.returncode)}), so the file is likely damaged; "
            "valid is a model that OpenSim opens"
        )
    last = (child.stderr.strip().splitlines() or ["no message"])[-1].strip()
    raise FileFormatError(
        f"{model} can't be converted: {one_line(last)}; valid is a model that OpenSim opens"
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

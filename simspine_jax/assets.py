"""Third-party files that are fetched, not shipped.

The spine model comes from the package ``pose2sim``, pinned by version and hash. Its wheel is fetched by pip
from wherever pip is set up to look; only the OpenSim files are unpacked, with their licence (BSD-3-Clause).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from simspine_jax.errors import SimspineError

PACKAGE = "pose2sim"
PACKAGE_VERSION = "0.10.49"
WHEEL_SHA256 = "403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1"
WHEEL_VARIABLE = "SIMSPINE_POSE2SIM_WHEEL"
MODEL_FOLDER = "Pose2Sim/OpenSim_Setup/"
LICENCE_FILE = f"{PACKAGE}-{PACKAGE_VERSION}.dist-info/licenses/LICENSE"
# 51 MB over a slow line.
DOWNLOAD_TIMEOUT_S = 1800


def cache_folder(*parts: str) -> Path:
    """A folder of ours in the user's cache; ``SIMSPINE_CACHE`` or ``XDG_CACHE_HOME`` move it."""
    root = os.environ.get("SIMSPINE_CACHE")
    base = (
        Path(root)
        if root
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simspine_jax"
    )
    return base.joinpath(*parts)


def fetch_spine_package() -> Path:
    """The folder with the spine model, its marker sets, setups and bone meshes; fetched on the first call.

    The wheel comes from the file that ``SIMSPINE_POSE2SIM_WHEEL`` names, if set, else through pip.

    Raises:
        SimspineError: there is no network or pip, the wheel is another one, or the cache can't be written.
    """
    folder = cache_folder(f"{PACKAGE}-{PACKAGE_VERSION}")
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as temporary:
            unpacked = Path(temporary) / folder.name
            _unpack(fetch_wheel(Path(temporary) / "wheel"), unpacked)
            _put_in_place(unpacked, folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SimspineError(f"{folder} can't be written ({reason}); SIMSPINE_CACHE moves the cache") from None
    return folder


def fetch_wheel(folder: Path) -> Path:
    """The pinned wheel whole: the file that ``SIMSPINE_POSE2SIM_WHEEL`` names, if set, else put here by pip.

    Args:
        folder: where pip may put it; made if missing.

    Raises:
        SimspineError: there is no network or pip, or the wheel is another one.
    """
    given = os.environ.get(WHEEL_VARIABLE)
    wheel = Path(given) if given else _download(folder)
    _check_hash(wheel)
    return wheel


def spine_model_path() -> Path:
    """The spine model with 62 coordinates (Rajagopal 2016 body, Beaucage-Gauvreau 2019 lumbar spine)."""
    return fetch_spine_package() / "Model_Pose2Sim_muscles_flex.osim"


def simple_model_path() -> Path:
    """The light model with 40 coordinates and no lumbar joints."""
    return fetch_spine_package() / "Model_Pose2Sim_simple.osim"


def geometry_path() -> Path:
    """The folder of the models' bone meshes."""
    return fetch_spine_package() / "Geometry"


def _download(folder: Path) -> Path:
    """The pinned wheel, by pip's own settings for where packages come from."""
    wanted = f"{PACKAGE}=={PACKAGE_VERSION}"
    instead = f"download its wheel elsewhere and name the file in {WHEEL_VARIABLE}"
    if importlib.util.find_spec("pip") is None:
        raise SimspineError(f"The spine model comes with {wanted}, but this Python has no pip; {instead}")
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "download", *options]
    try:
        child = subprocess.run(
            [*command, "--dest", str(folder), wanted],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SimspineError(f"pip did not fetch {wanted} within {DOWNLOAD_TIMEOUT_S} s; {instead}") from None
    wheels = sorted(folder.glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        lines = [line for line in child.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or child.stderr.splitlines() or ["no message"])[-1].removeprefix("ERROR:").strip()
        raise SimspineError(f"pip can't fetch {wanted} ({reason}); check the network, or {instead}")
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    if not wheel.is_file():
        raise SimspineError(f"There is no file {wheel}; {WHEEL_VARIABLE} must name the wheel of {PACKAGE}")
    with open(wheel, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise SimspineError(
            f"{wheel} has the SHA-256 {digest}; the wheel of {PACKAGE} {PACKAGE_VERSION} has {WHEEL_SHA256}"
        )


def _unpack(wheel: Path, folder: Path) -> None:
    """The wheel's OpenSim files and licence; the hash has already vouched for every name in it."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not (
                member.filename.startswith(MODEL_FOLDER) or member.filename == LICENCE_FILE
            ):
                continue
            inside = member.filename.removeprefix(MODEL_FOLDER)
            name = inside if inside != LICENCE_FILE else "LICENSE"
            target = folder.joinpath(*PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)


def _put_in_place(unpacked: Path, folder: Path) -> None:
    try:
        os.rename(unpacked, folder)
    except OSError:
        # Another process was first; its files are the same.
        if not folder.is_dir():
            raise

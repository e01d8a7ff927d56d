"""The pinned model package: fetched once, checked, and unpacked whole or not at all."""

import hashlib
import os
import stat
import zipfile

import pytest

from simspine_jax import assets
from simspine_jax.errors import SimspineError


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel of the same layout, its hash pinned, in a fresh cache."""
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Pose2Sim/__init__.py", "raise SystemExit")
        archive.writestr("Pose2Sim/OpenSim_Setup/Model_Pose2Sim_muscles_flex.osim", "flex")
        archive.writestr("Pose2Sim/OpenSim_Setup/Model_Pose2Sim_simple.osim", "simple")
        archive.writestr("Pose2Sim/OpenSim_Setup/Geometry/sacrum.vtp", "bone")
        archive.writestr(assets.LICENCE_FILE, "BSD 3-Clause License")
    monkeypatch.setenv("SIMSPINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(assets.WHEEL_VARIABLE, str(path))
    monkeypatch.setattr(assets, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_unpacks_models_meshes_and_licence_only(wheel):
    folder = assets.fetch_spine_package()
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == [
        "Geometry/sacrum.vtp",
        "LICENSE",
        "Model_Pose2Sim_muscles_flex.osim",
        "Model_Pose2Sim_simple.osim",
    ]
    assert assets.spine_model_path().read_text() == "flex"
    assert assets.simple_model_path().read_text() == "simple"
    assert (assets.geometry_path() / "sacrum.vtp").read_text() == "bone"
    assert os.listdir(folder.parent) == [folder.name]


def test_second_call_needs_no_wheel(wheel):
    first = assets.fetch_spine_package()
    wheel.unlink()
    assert assets.fetch_spine_package() == first


def test_wrong_wheel_is_refused_and_leaves_nothing(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(SimspineError, match="has the SHA-256"):
        assets.fetch_spine_package()
    assert os.listdir(assets.cache_folder()) == []


def test_missing_wheel_is_named(wheel):
    wheel.unlink()
    with pytest.raises(SimspineError, match=r"no file .*small\.whl"):
        assets.fetch_spine_package()


def test_without_pip_the_message_says_what_to_do(wheel, monkeypatch):
    monkeypatch.delenv(assets.WHEEL_VARIABLE)
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimspineError, match="no pip; download its wheel"):
        assets.fetch_spine_package()


@pytest.fixture
def no_index(monkeypatch):
    """pip set up so that it finds no package anywhere."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_without_a_network_the_message_is_one_sentence(wheel, monkeypatch, no_index):
    monkeypatch.delenv(assets.WHEEL_VARIABLE)
    with pytest.raises(SimspineError, match=r"pip can't fetch pose2sim==0\.10\.49") as caught:
        assets.fetch_spine_package()
    assert "\n" not in str(caught.value)


def test_pip_finds_the_wheel_where_it_is_set_up_to_look(wheel, tmp_path, monkeypatch, no_index):
    monkeypatch.delenv(assets.WHEEL_VARIABLE)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    info = f"{assets.PACKAGE}-{assets.PACKAGE_VERSION}.dist-info"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pose2sim\nVersion: 0.10.49\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(assets, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    wheel.rename(shelf / f"{assets.PACKAGE}-{assets.PACKAGE_VERSION}-py3-none-any.whl")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    assert assets.spine_model_path().read_text() == "flex"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_cache_is_named(wheel, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SimspineError, match="SIMSPINE_CACHE moves"):
        assets.fetch_spine_package()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SIMSPINE_CACHE", str(tmp_path / "ours"))
    assert assets.cache_folder("a", "b") == tmp_path / "ours" / "a" / "b"
    monkeypatch.delenv("SIMSPINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_folder() == tmp_path / "xdg" / "simspine_jax"

"""Checkpoints: damaged ones are told and passed over, whichever of their files is cut or changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_program import RUN

from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.training.checkpoints import Checkpoints, hashes_of, named_leaves, saved_steps
from simspine_jax.training.models import build_lifter, empty_statistics
from simspine_jax.training.run import with_settings
from simspine_jax.training.state import TrainState, data_state, initial_state

pytestmark = pytest.mark.usefixtures("float32")

COUNT = 240


@pytest.fixture(scope="module")
def like() -> TrainState:
    with jax.enable_x64(False):
        return initial_state(build_lifter(RUN, empty_statistics(RUN), None), RUN)[1]


def at(state: TrainState, step: int) -> TrainState:
    moved = jax.tree.map(lambda x: x + 0.01 * step if x.dtype == jnp.float32 else x, state)
    return dataclasses.replace(moved, step=jnp.asarray(step, jnp.int32))


@pytest.fixture(scope="module")
def written(like: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 8 and 16."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, note=pytest.fail)
    with jax.enable_x64(False):
        for step in (8, 16):
            checkpoints.save(at(like, step), data_state(step, RUN, COUNT))
    checkpoints.close()
    return folder


def restored(folder: Path, like: TrainState) -> tuple[int, list[str]]:
    """The step of what is read, and what was told."""
    told: list[str] = []
    checkpoints = Checkpoints(folder, read_only=True, note=told.append)
    try:
        state = checkpoints.restore(like)
    finally:
        checkpoints.close()
    assert state is not None
    step = int(state.step)
    for name, leaf in named_leaves(at(like, step)).items():
        np.testing.assert_array_equal(named_leaves(state)[name], leaf, err_msg=name)
    return step, told


def test_the_newest_is_read_bit_for_bit(written: Path, like: TrainState) -> None:
    assert restored(written, like) == (16, [])


def test_memory_that_a_step_takes_over_is_not_written(like: TrainState, tmp_path: Path) -> None:
    reuse = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, note=pytest.fail)
    state = jax.tree.map(jnp.copy, at(like, 8))
    checkpoints.save(state, data_state(8, RUN, COUNT))
    for _ in range(3):
        state = reuse(state)
    jax.block_until_ready(state)
    checkpoints.close()
    assert restored(folder, like) == (8, [])


def copied(written: Path, run: Path) -> Path:
    """The checkpoints of a copy of the run."""
    shutil.copytree(written.parent, run)
    return run / written.name


def test_a_checkpoint_that_was_finished_just_before_a_kill_is_read(
    written: Path, like: TrainState, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path / "run")
    (tmp_path / "run" / "hashes" / "16.json").unlink()
    assert restored(folder, like) == (16, [])


def files_of(folder: Path) -> list[Path]:
    return sorted(
        p.relative_to(folder) for p in (folder / "16").rglob("*") if p.is_file() and p.stat().st_size
    )


def test_any_file_that_is_cut_or_changed_is_noticed(written: Path, like: TrainState, tmp_path: Path) -> None:
    names = files_of(written)
    assert len(names) > 4
    for i, name in enumerate(names):
        for how in ("cut", "changed", "gone"):
            folder = copied(written, tmp_path / f"{i}{how}")
            content = bytearray((folder / name).read_bytes())
            if how == "cut":
                (folder / name).write_bytes(content[: len(content) // 2])
            elif how == "changed":
                content[len(content) // 2] ^= 0xFF
                (folder / name).write_bytes(content)
            else:
                (folder / name).unlink()
            step, told = restored(folder, like)
            assert step == 8
            assert told[0].startswith("the checkpoint of step 16")
            assert f"damaged ({name.relative_to('16')} is not as it was written)" in told[0]
            shutil.rmtree(folder.parent)


def test_a_training_goes_on_from_the_last_good_one_and_writes_the_step_again(
    written: Path, like: TrainState, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path / "run")
    for file in (folder / "16").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    told: list[str] = []
    checkpoints = Checkpoints(folder, note=told.append)
    state = checkpoints.restore(like, data_state(0, RUN, COUNT))
    assert state is not None
    assert int(state.step) == 8
    assert len(told) == 2
    assert "step 16" in told[0]
    assert told[1] == "the checkpoint of step 8 is used"
    checkpoints.save(at(like, 16), data_state(16, RUN, COUNT))
    checkpoints.close()
    assert restored(folder, like) == (16, [])


def test_saved_steps_are_those_of_finished_checkpoints(written: Path, tmp_path: Path) -> None:
    folder = copied(written, tmp_path / "run")
    (folder / "24.orbax-checkpoint-tmp").mkdir()
    assert saved_steps(folder) == [8, 16]
    assert saved_steps(tmp_path / "nowhere") == []


def test_where_none_is_good_it_says_so(written: Path, like: TrainState, tmp_path: Path) -> None:
    folder = copied(written, tmp_path / "run")
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(FileFormatError, match="none of its checkpoints can be read"):
        restored(folder, like)


def test_other_models_and_other_data_are_refused(written: Path, like: TrainState) -> None:
    other = with_settings(RUN, ["model.width=32"])
    wrong = initial_state(build_lifter(other, empty_statistics(other), None), other)[1]
    with pytest.raises(FileFormatError, match=r"of another model, which differs in .* and"):
        restored(written, wrong)
    checkpoints = Checkpoints(written, read_only=True, note=pytest.fail)
    with pytest.raises(SimspineError, match="had the count 240 of its data and now has 300"):
        checkpoints.restore(like, data_state(0, RUN, 300))
    checkpoints.close()


def test_only_the_newest_are_kept(like: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, note=pytest.fail)
    for step in (1, 2, 3):
        checkpoints.save(at(like, step), data_state(step, RUN, COUNT))
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    assert sorted(p.name for p in (tmp_path / "hashes").iterdir()) == ["2.json", "3.json"]
    checkpoints.close()
    assert Checkpoints(tmp_path / "new", note=pytest.fail).restore(like) is None


def test_hashes_tell_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"1")
    (tmp_path / "a" / "d").write_bytes(b"2")
    found = hashes_of(tmp_path / "a")
    assert sorted(found) == ["b/c", "d"]
    assert found["b/c"] != found["d"]

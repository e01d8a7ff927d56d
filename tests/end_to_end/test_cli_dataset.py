"""``simspine dataset build`` and ``info``: killed, interrupted, asked for nonsense."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simspine_jax.cli import BAD_INPUT, INTERRUPTED, main

pytest.importorskip("array_record", reason="the extra tfds is not installed")
pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")

# The trials of test_cli_simulate, so that the compiled programs are shared.
SMALL = ("--subjects", "S1", "S9", "--actions", "Walking", "Greeting", "--seconds", "1.2")
WAIT_S = 600.0


def run(*words: object) -> int:
    return main(["dataset", *map(str, words)])


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "simspine_jax.cli", "dataset", "build", *SMALL, "--data-dir", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_when(child: subprocess.Popen[str], there: Callable[[], bool], number: signal.Signals) -> str:
    """What it says on stderr."""
    limit = time.monotonic() + WAIT_S
    while not there():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    child.send_signal(number)
    return child.communicate(timeout=WAIT_S)[1]


def prepared(folder: Path) -> Path:
    return folder / "simspine" / "synthetic" / "1.0.0"


def hashes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in prepared(folder).iterdir()}


def test_a_killed_and_an_interrupted_build_go_on_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("build", *SMALL, "--data-dir", whole) == 0
    told = capsys.readouterr()
    assert "train 2, test 2 records" in told.out
    trials = [line for line in told.err.splitlines() if line.startswith("trial ")]
    assert trials[-1].startswith("trial 4 of 4: S9_")  # without a terminal, a line each

    def done(subject: str) -> bool:
        return len(list(broken.glob(f"downloads/simspine-*/{subject}/trials/{subject}/*.json"))) == 2

    stop_when(start(broken), lambda: done("S1"), signal.SIGKILL)
    assert not prepared(broken).exists()
    records = {p: p.stat().st_mtime_ns for p in broken.glob("downloads/*/S1/trials/S1/*.json")}
    assert len(records) == 2

    left = set(broken.glob("simspine/synthetic/incomplete.*"))
    assert left  # the killed build had no chance to take it away
    child = start(broken)
    said = stop_when(
        child, lambda: bool(set(broken.glob("simspine/synthetic/incomplete.*")) - left), signal.SIGINT
    )
    assert child.returncode == INTERRUPTED
    assert "no half dataset is left, what is done is kept" in said
    assert not list(broken.glob("simspine/synthetic/incomplete.*"))
    assert not prepared(broken).exists()
    assert {p: p.stat().st_mtime_ns for p in records} == records  # S1 was not solved again

    assert run("build", *SMALL, "--data-dir", broken) == 0
    assert hashes_of(broken) == hashes_of(whole)
    assert sorted(p.name for p in prepared(broken).parent.iterdir()) == [".lock", "1.0.0"]
    assert not list(broken.glob("downloads/simspine-*"))

    capsys.readouterr()
    assert run("info", "--data-dir", broken) == 0
    said = capsys.readouterr().out
    assert "synthetic: nobody was recorded" in said
    assert "subjects S1 S9, actions Walking Greeting, seed 0, seconds 1.2" in said
    assert "keypoints_2d_mask" in said
    assert "keypoints, in this order: nose, left_eye, right_eye" in said
    assert "kinematics, in this order: pelvis_tilt, pelvis_list" in said
    assert run("info", "--data-dir", broken, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {s["name"]: (s["frames"], s["view_frames"]) for s in facts["splits"]} == {
        "train": (120, 480), "test": (120, 480),
    }  # fmt: skip
    assert run("build", "--data-dir", broken) == BAD_INPUT  # all of it is another data set
    assert "--force to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("build", "--config", "synthetik"), "Configuration 'synthetik' is not in the data set"),
        (("build", "--config", "release", "--seconds", "2"), "--seconds has no effect with --config release"),
        (("build", "--config", "pipeline", "--seed", "2"), "--seed has no effect with --config pipeline"),
        (("build", "--manual-dir", "x"), "--manual-dir has no effect with --config synthetic"),
        (("build", "--data-dir", "gs://bucket"), "is no folder of a file system"),
        (("build", "--pictures", "5"), "it goes with --config synthetic_images"),
        (("build", "--file-format", "parquet"), "it has: array_record, tfrecord"),
        (("build", "--subjects", "S2"), "Subject 'S2' is not in the synthetic set"),
        (("build", "--actions", "Run"), "Action 'Run' is not in the synthetic set"),
        (("build", "--seconds", "0"), "seconds"),
        (("build", "--seed", "-1"), "seed"),
        (("build", "--config", "synthetic_images", "--pictures", "0"), "0 pictures were asked for"),
        (("build", "--config", "release", "--manual-dir", "nowhere"), "nowhere does not exist or is empty"),
        (("info", "--config", "release"), "'simspine dataset build --config release --data-dir"),
        (("info", "--config", "nothing"), "Configuration 'nothing' is not in the data set"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert run(words[0], "--data-dir", tmp_path, *words[1:]) == BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob("1.0.0"))
    assert not list(tmp_path.rglob("incomplete.*"))


@pytest.mark.parametrize("words", [("build", "--confg", "x"), ("inf",), ()])
def test_unknown_words_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == BAD_INPUT
    assert "simspine dataset" in capsys.readouterr().err


def test_a_file_in_the_way_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run("build", "--data-dir", tmp_path / "file") == BAD_INPUT
    assert "file" in capsys.readouterr().err

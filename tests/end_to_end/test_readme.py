"""The examples of the READMEs, run as they stand there, and the table that a script fills."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(readme: Path) -> dict:
    """Runs the Python blocks one after the other in one namespace; a traceback shows the README's lines."""
    text = readme.read_text(encoding="utf-8")
    names: dict = {"__name__": "readme"}
    for block in BLOCK.finditer(text):
        above = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(above + block[1], str(readme), "exec"), names)
    return names


def test_readme_examples(spine_osim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "README.md")
    told = capsys.readouterr().out
    assert "62 coordinates, 40 of them free" in told
    assert "40 of 40 frames converged" in told
    # 5 mm on each of three axes, of which 40 coordinates explain a part of 99 numbers.
    assert 0.004 < float(np.mean(names["solution"].marker_rmse)) < 0.0087
    # The six lumbar levels turn by 7.14 times as much in all, half a metre or less below C7.
    assert 1.5 < np.linalg.norm(names["jacobian"][:, names["flexion"]]) < 3.6
    assert "Neck is off by" in told
    np.testing.assert_allclose(names["step"][names["neck"]], [0, 0.030, 0], atol=0.003)
    smooth, plain, truth = (np.asarray(x) for x in (names["smooth"].q, names["solution"].q, names["truth"]))
    assert np.std(smooth - truth) < np.std(plain - truth)


def test_the_coordinate_task_outweighs_the_markers(spine_osim) -> None:
    names = run_blocks(ROOT / "simspine_jax" / "kinematics" / "README.md")
    task = 1.0
    assert names["held"] > task > 10 * names["curvature"] > 0
    assert names["curvature"] > 1e4 * names["prior"]


def test_converter_readme_examples(spine_osim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "converters" / "osim2mjcf" / "README.md")
    # float32 in the motion against MuJoCo's float64.
    np.testing.assert_allclose(names["positions"], names["expected"], atol=1e-5)


def test_links_lead_somewhere() -> None:
    path = ROOT / "README.md"
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", path.read_text(encoding="utf-8"))
    assert links
    for target, anchor in links:
        found = path.parent / target
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def row(key: str, value: float | None, **more) -> dict:
    machine = {"cpu": "a processor", "cores": 2, "device": "cpu"}
    return {
        "key": key,
        "value": value,
        "unit": "m",
        "machine": machine,
        "versions": {"jax": "1"},
        "commit": "c",
    } | more


def test_the_table_is_filled_and_filled_again(tmp_path: Path) -> None:
    from benchmarks.readme import BEGIN, END, main

    results, readme, everything = (tmp_path / name for name in ("results.json", "README.md", "RESULTS.md"))
    begin, end = BEGIN.format("kinematics"), END.format("kinematics")
    readme.write_text(f"above\n{begin}\nnothing yet\n{end}\nbelow\n")
    key, other = "kinematics/fk_parity_f64_max_m", "kinematics/fk_vs_mujoco_c"
    for value in (1.0, 2.5e-14):
        rows = [row(key, value, data="a|b"), row(other, None, skipped="no GPU")]
        results.write_text(json.dumps([*rows, row("kinematics/fk_vs_opensim", 40.0)]))
        assert main([str(results), "--readme", str(readme), "--all", str(everything)]) == 0
    text = readme.read_text()
    assert text.startswith(f"above\n{begin}\n| row | value |")
    assert f"| `{key}` | 2.5e-14 | m | ≤ 1e-09 | a\\|b |" in text
    assert f"Without a value: `{other}` (no GPU)." in text
    assert "fk_vs_opensim" not in text  # it promises nothing
    assert text.endswith(f"{end}\nbelow\n")
    assert "| `kinematics/fk_vs_opensim` | 40 | m |" in everything.read_text()


def test_a_missed_bar_is_shown() -> None:
    from benchmarks.readme import table

    key = "kinematics/ik_marker_rmse_ratio/trial"
    shown = table({key: row(key, 1.00035)})
    assert "| 1.00035 | m | ≤ 1.0001, **missed** |" in shown
    assert "| 0.998 | m | ≤ 1.0001 |" in table({key: row(key, 0.998)})


def test_data_of_several_rows_are_told_once() -> None:
    from benchmarks.readme import table

    rows = {k: row(k, 2.0, data="many words") for k in (RATIO, OTHER)} | {"x/y": row("x/y", 2.0, data="few")}
    lines = table(rows).splitlines()
    assert sum("many words" in line for line in lines) == 1
    assert "- **A:** many words" in lines
    assert [line.rsplit(" | ", 1)[1] for line in lines[2:5]] == ["A |", "A |", "few |"]


RATIO, OTHER = "kinematics/fk_vs_mujoco_c", "kinematics/clip_ik_cost_ratio"


@pytest.mark.parametrize(
    ("rows", "marks", "says"),
    [
        ([], True, "valid are those of one suite"),
        ([row("s/a", 1.0)], True, "valid are those of one suite"),
        ([row(RATIO, None, skipped="no GPU")], True, "no row has a value"),
        ([row(RATIO, 1.0, quick=True)], True, "quick"),
        ([row(RATIO, 1.0), row(OTHER, 1.0, commit="d")], True, "mixed"),
        ([row(RATIO, 1.0)], False, "once each"),
    ],
)
def test_rows_that_must_not_be_shown_are_refused(tmp_path: Path, capsys, rows, marks, says) -> None:
    from benchmarks.readme import BEGIN, END, main

    results, readme = tmp_path / "results.json", tmp_path / "README.md"
    marked = f"{BEGIN}\n{END}\n".format("kinematics", "kinematics")
    readme.write_text(marked if marks else "none\n")
    results.write_text(json.dumps(rows))
    before = readme.read_text()
    assert main([str(results), "--readme", str(readme), "--all", str(tmp_path / "all.md")]) == 2
    assert says in capsys.readouterr().err
    assert readme.read_text() == before

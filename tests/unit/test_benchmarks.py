"""The benchmarks' rows, gate and command line; measuring is the business of `python -m benchmarks`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
    from benchmarks import __main__ as command
    from benchmarks import metrics


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch):
    """The repository's root is kept off the path of installed code, and `benchmarks` is found only there."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__, metrics

    monkeypatch.setitem(globals(), "command", __main__)
    monkeypatch.setitem(globals(), "metrics", metrics)


def metric(**changes):
    made = metrics.Metric("s/a", "ratio", "higher", 0.2, 10.0, "A ratio.", is_timing=True)
    return dataclasses.replace(made, **changes)


def row(value, key="s/a", **machine):
    return {"key": key, "value": value, "unit": "ratio", "machine": {"cpu": "x", "cores": 2, **machine}}


@pytest.mark.parametrize(
    ("direction", "value", "fails"),
    [("higher", 0.81, False), ("higher", 0.79, True), ("higher", 2.0, False),
     ("lower", 1.19, False), ("lower", 1.21, True), ("lower", 0.1, False)],
)  # fmt: skip
def test_a_row_fails_where_it_is_worse_by_more_than_its_tolerance(direction, value, fails):
    found = metrics.regression(metric(direction=direction), row(value), row(1.0))
    assert bool(found) == fails
    if fails:
        assert f"s/a is {value}" in found
        assert "20 %" in found


def test_only_rows_that_can_be_compared_gate():
    worse = (row(0.1), row(1.0))
    assert metrics.regression(metric(), *worse)
    assert not metrics.regression(metric(tolerance=None), *worse)
    assert not metrics.regression(metric(), row(None), row(1.0))
    assert not metrics.regression(metric(), row(0.1), None)
    assert not metrics.regression(metric(), row(0.1), row(None))
    # Times belong to a machine, accuracies don't.
    elsewhere = row(1.0, cores=64)
    assert not metrics.regression(metric(), row(0.1), elsewhere)
    assert metrics.regression(metric(is_timing=False), row(0.1), elsewhere)


def test_errors_far_below_their_bar_may_move_and_ratios_may_not():
    rounding = metric(direction="lower", bar=1e-9, is_timing=False)
    assert not metrics.regression(rounding, row(6e-14), row(2e-14))
    assert metrics.regression(rounding, row(6e-10), row(2e-10))
    assert metrics.regression(metric(bar=1.0), row(20.0), row(40.0))


def test_nan_is_worse_than_anything():
    assert metric().is_worse(float("nan"), 1.0)
    assert metric(direction="lower").is_worse(float("nan"), 1.0)


def suite(*runs):
    made = (metric(), metric(key="s/b", bar=None), metric(key="s/b/*", bar=2.0))
    works = tuple(metrics.Workload(keys, run) for keys, run in runs)
    return metrics.Suite("s", made, works, dict)


def rows_of(made, only=()):
    origin = metrics.Provenance({"cpu": "x"}, {"python": "3"}, "abc")
    return list(command._rows(made, {}, only, origin))


def test_rows_carry_where_they_come_from_and_what_they_were_measured_on():
    def run(_):
        yield metrics.Measurement("s/a", 12.0, "real: a walk", "On two cores.", {"rate": 3})

    (found,) = rows_of(suite((("s/a",), run)))
    assert found == {
        "key": "s/a", "value": 12.0, "unit": "ratio", "machine": {"cpu": "x"}, "versions": {"python": "3"},
        "commit": "abc", "data": "real: a walk", "note": "A ratio. On two cores.", "detail": {"rate": 3},
    }  # fmt: skip
    text = metrics.format_table([suite()], [found, found | {"value": 9.0}, found | {"quick": True}])
    assert [line.split()[5] for line in text.splitlines()[1:]] == ["met", "MISSED", "quick"]
    assert "real: a walk" in text


def test_what_was_measured_outlives_what_breaks_and_what_is_skipped(capsys):
    def breaks(_):
        yield metrics.Measurement("s/b", 1.0, "")
        raise ZeroDivisionError("by nothing")

    def skips(_):
        raise metrics.SkippedError("OpenSim is not installed")
        yield

    found = rows_of(suite((("s/b", "s/b/*"), breaks), (("s/a",), skips)))
    assert [(r["key"], r["value"]) for r in found] == [("s/b", 1.0), ("s/b/*", None), ("s/a", None)]
    assert found[1]["failed"] == "ZeroDivisionError: by nothing"
    assert found[2]["skipped"] == "OpenSim is not installed"
    assert "FAILED" in metrics.format_table([suite()], found)


def test_a_value_that_is_no_number_fails_its_row(tmp_path):
    def run(_):
        yield metrics.Measurement("s/a", float("nan"), "")

    (found,) = rows_of(suite((("s/a",), run)))
    assert found["value"] is None
    assert "nan" in found["failed"]
    metrics.write_rows(tmp_path / "rows.json", [found])
    assert metrics.read_rows(tmp_path / "rows.json") == {"s/a": found}


def test_only_the_rows_asked_for_are_measured():
    def never(_):
        raise AssertionError
        yield

    def family(_):
        yield metrics.Measurement("s/b/one", 1.0, "")
        yield metrics.Measurement("s/b/two", 2.0, "")

    made = suite((("s/a",), never), (("s/b/*",), family))
    assert [r["key"] for r in rows_of(made, ["s/b"])] == ["s/b/one", "s/b/two"]
    assert [r["key"] for r in rows_of(made, ["s/b/two"])] == ["s/b/two"]
    # Patterns of the user: the metric's own, a wider one, and one that takes some of its rows.
    assert [r["key"] for r in rows_of(made, ["s/b/*"])] == ["s/b/one", "s/b/two"]
    assert [r["key"] for r in rows_of(made, ["s/b*"])] == ["s/b/one", "s/b/two"]
    assert rows_of(made, ["s/c*"]) == []


@pytest.mark.parametrize(
    ("words", "selected"),
    [(["lifting", "multiview/*"], {"multiview"}), (["lifting", "multiview"], {"multiview"}),
     (["lifting", "samples_per_s/*"], {"lifting/samples_per_s/*"}),
     (["lifting", "lifting/samples_per_s/*"], {"lifting/samples_per_s/*"}),
     (["lifting", "lifting/samples_per_s/simple_full"], {"lifting/samples_per_s/*"}),
     (["lifting", "multiview/*/robust/all_mpjpe_mm"], {f"multiview/{s}/robust/all_mpjpe_mm"
                                                       for s in ("truth", "detected", "zero_shot")}),
     (["lifting", "*"], {"multiview", "lifting"})],
)  # fmt: skip
def test_patterns_select_metrics_with_or_without_the_suite(words, selected):
    suite_name, key = words
    given = command._parse([suite_name, "--only", key])
    keys = [m.key for m in command.SUITES[suite_name].metrics]
    found = {k for k in keys if metrics.selects(given.only, k)}
    assert found == {k for k in keys if k in selected or k.partition("/")[0] in selected}
    assert found


def test_rows_of_a_part_are_found_by_its_own_name():
    part = metrics.Metric("p/c/*", "mm", "lower", None, 1.0, "A part.")
    made = metrics.Suite("s", (metric(), part), (), dict)
    other = metrics.Suite("t", (metric(key="t/a"),), (), dict)
    assert made.prefixes == {"s", "p"}
    assert metrics.suite_of([other, made], "p/c/one") is made
    with pytest.raises(KeyError, match="q/a is of none of the suites"):
        metrics.suite_of([other, made], "q/a")
    text = metrics.format_table([other, made], [row(0.5, "p/c/one"), row(2.0, "t/a")])
    assert [line.split()[5] for line in text.splitlines()[1:]] == ["met", "MISSED"]


def test_the_readme_takes_a_suite_with_its_parts():
    from benchmarks import readme

    rows = {key: row(0.5, key) for key in ("multiview/truth/robust/all_mpjpe_mm", "lifting/oks_parity_max")}
    assert readme._suite_of(rows).name == "lifting"
    assert readme._bar("multiview/truth/robust/all_mpjpe_mm", 0.5) == "≤ 0.05, **missed**"
    with pytest.raises(ValueError, match="valid are those of one suite"):
        readme._suite_of(rows | {"pipeline/oracle_mpjpe_mm": row(0.0)})


def test_a_suite_goes_into_the_readme_in_parts(tmp_path):
    from benchmarks import readme

    def written(name, key, value, commit, **more):
        path = tmp_path / name
        origin = {
            "machine": {"cpu": "x", "cores": 2, "device": "cpu"},
            "versions": {"jax": "1"},
            "commit": commit,
        }
        rows = [row(value, key) | origin | {"data": "synthetic"}]
        rows += [row(None, k) | origin | {"skipped": why} for k, why in more.items()]
        metrics.write_rows(path, rows)
        return str(path)

    late = {"lifting/oks_parity_max": "later"}
    first = written("a.json", "multiview/truth/robust/all_mpjpe_mm", 0.01, "c0ffee", **late)
    second = written("b.json", "lifting/oks_parity_max", 0.0, "facade")
    text, everything = tmp_path / "README.md", tmp_path / "RESULTS.md"
    text.write_text("a\n<!-- benchmark:lifting:begin -->\nold\n<!-- benchmark:lifting:end -->\nz\n")
    everything.write_text("# All rows\n\n## dataset\n\nkept\n\n## lifting\n\nold\n")
    places = ["--readme", str(text), "--all", str(everything)]
    assert readme.main([first, second, *places]) == 0
    for page in (text.read_text(), everything.read_text()):
        assert page.count("| row |") == 2
        assert "commit c0ffee" in page
        assert "commit facade" in page
        assert "later" not in page
        assert "old" not in page
    assert "## dataset\n\nkept\n\n## lifting" in everything.read_text()
    assert readme.main([second, second, *places]) == 2


def test_peers_take_turns_and_the_least_time_counts():
    calls = []
    best = metrics.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 4  # one round to warm up
    assert 0 <= best["a"] < 0.1
    assert list(best) == ["a", "b"]


def test_every_key_of_a_workload_has_its_metric_and_every_metric_its_workload():
    for made in command.SUITES.values():
        given = [key for workload in made.workloads for key in workload.keys]
        assert sorted(given) == sorted({m.key for m in made.metrics})
        assert made.name in made.prefixes
        for one in made.metrics:
            assert metrics.suite_of(command.SUITES.values(), one.key) is made
            assert one.tolerance is None or one.unit not in ("1/s", "s", "MB")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["spinning"], "there is no suite 'spinning'; valid are kinematics"),
        (["kinematics", "--only", "nothing"], "there is no row 'nothing'"),
        (["pipeline", "--only", "kinematics/fk_vs_mujoco_c"], "there is no row 'kinematics/fk_vs_mujoco_c'"),
        (["kinematics", "--quick", "--write-baseline"], "--quick measures nothing"),
        (["kinematics", "--write-baseline", "--only", "fk_vs_mujoco_c"], "leave --only out"),
        (["kinematics", "--compare", "nowhere.json"], "nowhere.json can't be read"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def run_quickly(suite_name, keys, folder):
    """Rows of a quick run by key, and what it printed."""
    options = ["--quick", "--json", str(folder / "rows.json"), "--only", *keys]
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks", suite_name, *options],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    rows = json.loads((folder / "rows.json").read_text())
    assert {r["key"] for r in rows} == {f"{suite_name}/{key}" for key in keys}
    return {r["key"]: r for r in rows}, child.stdout


def test_rows_beside_pose2sim_from_the_command_line(shared_data, spine_osim, tmp_path):
    """Its stored points, and its own code, which the wheel that also holds the model brings."""
    keys = ["triangulation_parity_max_mm", "robust_worst_point_mm", "triangulation_vs_pose2sim"]
    rows, _ = run_quickly("pipeline", keys, tmp_path)
    parity, robust, speed = (rows[f"pipeline/{key}"] for key in keys)
    if "skipped" in speed:
        pytest.skip(speed["skipped"])
    assert 0 < parity["value"] < 0.01
    assert parity["detail"]["points"] == 2094
    assert 1 < robust["value"] < 25 < 2000 < robust["detail"]["all_cameras_worst_mm"]
    assert speed["value"] > 1
    assert speed["detail"]["pose2sim_off_mm"] < 0.01
    assert all(r["data"].startswith("real") for r in rows.values())


def test_two_rows_from_the_command_line(spine_model, tmp_path):
    keys = ["lumbar_flexion_rms_deg", "fk_vs_mujoco_c"]
    by_key, printed = run_quickly("kinematics", keys, tmp_path)
    rows = by_key.values()
    for r in rows:
        assert {"key", "value", "unit", "machine", "versions", "commit", "data", "note", "quick"} <= set(r)
        assert r["data"].startswith("synthetic")
        assert {"python", "jax", "jaxlib", "mujoco", "mujoco-mjx", "simspine-jax"} <= set(r["versions"])
        assert r["key"] in printed
    assert 0 < by_key["kinematics/lumbar_flexion_rms_deg"]["value"] < 1
    # The two engines gave one another's markers, or the row would have failed.
    assert by_key["kinematics/fk_vs_mujoco_c"]["detail"]["marker_difference_m"] < 1e-5

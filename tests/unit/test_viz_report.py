"""Reports and the validation's folder: whole, escaped, without the network, and honest about their data."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from spine_trials import SOURCE, bare_trial, lost_trial, make_set, make_trial, unseen_trial

from simspine_jax.annotations import QualityEvent
from simspine_jax.errors import MissingDependencyError, ShapeError, UnknownNameError
from simspine_jax.statistics import SYNTHETIC_NOTICE, UNSEEN_NOTICE, gather_statistics
from simspine_jax.tables import TABLE_FORMATS
from simspine_jax.validation import truth_table
from simspine_jax.viz.report import MAX_EVENTS, write_set_report, write_trial_report
from simspine_jax.viz.validate import DEFAULT_FORMATS, VALIDATION_FORMATS, run_validation

OPEN = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags don't match."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.pictures, self.links, self.words, self.stack = [], [], [], [], []
        self.ids, self.described = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.stack == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in attributes if name.startswith("on")]
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.pictures.append(attributes["src"])
            self.described.append(attributes["alt"])
        if tag not in OPEN:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)


def check(page, n_pictures):
    """No script, nothing from elsewhere, every picture readable, every link within the page has its end.

    Pictures are as wide as the page is at most; those by action are narrower where actions are few.
    """
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.pictures) == n_pictures
    for picture in page.pictures:
        kind, data = picture.split(",")
        assert kind == "data:image/png;base64"
        assert 110 * 6 < imread(io.BytesIO(base64.b64decode(data, validate=True))).shape[1] <= 1210
    assert {link[1:] for link in page.links if link.startswith("#")} == set(page.ids)


def test_a_trials_report_has_everything(tmp_path):
    write_trial_report(tmp_path / "r.html", make_trial())
    page = Page(tmp_path / "r.html")
    # Quality, curvature, lumbar, neck, ranges, cameras, markers.
    check(page, 7)
    assert all(SOURCE in words for words in page.described)
    for words in (
        "Spine annotations of S1_Walking_1", "35 of 40 frames (87.5 %)", "far from its target", "71.00",
        "a short gap was filled", "Reprojection error by camera", "Residual by marker",
        "Range of motion by lumbar level", f"Data {SOURCE}", "compares with the paper's",
        "Repaired 2 of 40 frames (5.0 %), and 0 short gaps of markers filled",
        "Spine keypoints seen 9 of 9, in every frame some between hips and neck",
    ):  # fmt: skip
        assert words in page.text, words
    for words in ("Measured on", "recalled, unverified", "notice"):
        assert words not in page.text, words


def test_notices_facts_and_tables_that_are_given_are_shown(tmp_path):
    synthetic = make_trial(source="synthetic capture: S1, Walking, seed 0")
    given = {
        "facts": {"Height and mass": "1.66 m, 60 kg"},
        "tables": [truth_table({"a": {"all": 7.125}}, "x")],
    }
    write_trial_report(tmp_path / "trial.html", synthetic, **given)
    write_set_report(tmp_path / "set.html", [synthetic], **given)
    for name in ("trial.html", "set.html"):
        page = Page(tmp_path / name)
        assert f'<p class="notice">{SYNTHETIC_NOTICE}</p>' in (tmp_path / name).read_text()
        for words in ("Height and mass 1.66 m, 60 kg", "Mean distance from the synthetic truth", "7.12"):
            assert words in page.text, words
        assert "simulated (solid)" in page.text
        assert "measured (solid)" not in page.text
    write_trial_report(tmp_path / "unseen.html", unseen_trial())
    page = Page(tmp_path / "unseen.html")
    assert UNSEEN_NOTICE in page.text
    assert "of 9, none between hips and neck; curvature and lumbar angles come from the model" in page.text


def test_unverified_values_are_shown_where_they_are_asked_for(tmp_path):
    for unverified in (False, True):
        run_validation([make_trial()], tmp_path, ["html", "csv"], unverified=unverified)
        assert ("recalled, unverified" in Page(tmp_path / "report.html").text) == unverified
        table = (tmp_path / "tables" / "lumbar_range_of_motion.csv").read_text()
        assert ("recalled, unverified" in table) == unverified
        assert ("no verified reference value" in table) != unverified


def test_a_sets_report_has_everything(tmp_path):
    write_set_report(tmp_path / "r.html", iter(make_set()), {"S1 & S9": "reports/S1 Walking.html"})
    page = Page(tmp_path / "r.html")
    check(page, 4)
    assert "reports/S1%20Walking.html" in page.links
    for words in (
        "Curvature by action", "Curvature by subject", "Range of the neck by action",
        "Usable frames and faults", "Reference values", "S11_Sitting", "S1 & S9",
        "12 trials of 3 subjects, 440 of 500 frames usable",
    ):  # fmt: skip
        assert words in page.text, words
    write_set_report(
        tmp_path / "again.html", gather_statistics(make_set()), {"S1 & S9": "reports/S1 Walking.html"}
    )
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_everything_from_the_data_is_escaped(tmp_path):
    nasty = "</p><script>alert('x')</script>\"&$title $\\frac$"
    event = QualityEvent("ik", 0, 1, nasty, nasty, "noted", 1.0, 2.0, nasty)
    trial = make_trial(source=nasty, events=(event,), camera_names=(nasty, "b"))
    write_trial_report(tmp_path / "r.html", trial, {nasty: "javascript:alert(1)"})
    page = Page(tmp_path / "r.html")
    check(page, 7)
    assert page.text.count(nasty) > 5
    assert all(nasty in words for words in page.described)
    assert "javascript%3Aalert%281%29" in page.links


@pytest.mark.parametrize(("trial", "n_pictures", "missing"), [
    (bare_trial(), 5, ["no events", "no reprojection errors", "no marker residuals"]),
    (lost_trial(), 1, ["no events", "no curvature", "no joint angles", "no reprojection errors"]),
], ids=["bare", "lost"])  # fmt: skip
def test_what_a_trial_lacks_is_said_in_words(tmp_path, trial, n_pictures, missing):
    write_trial_report(tmp_path / "r.html", trial)
    page = Page(tmp_path / "r.html")
    check(page, n_pictures)
    for words in missing:
        assert f"The data hold {words}" in page.text
    assert "source not stated" in page.text
    assert "a source that is not stated" in page.text
    assert "nan" not in page.text.split()


def test_many_events_are_cut_and_counted(tmp_path):
    events = tuple(QualityEvent("ik", i, i, "C7", f"event{i}.", "noted") for i in range(MAX_EVENTS + 7))
    write_trial_report(tmp_path / "r.html", make_trial(events=events))
    page = Page(tmp_path / "r.html")
    assert f"event{MAX_EVENTS - 1}." in page.text
    assert f"event{MAX_EVENTS}." not in page.text
    assert "7 more events are left out here." in page.text


def test_the_validation_writes_what_is_asked(tmp_path):
    seen = []
    found = run_validation(
        iter(make_set()), tmp_path / "out", DEFAULT_FORMATS, lambda trial: seen.append(trial.name)
    )
    assert len(seen) == 12
    there = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert there == sorted(found)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in found]
    assert names[0] == "report.html"
    assert names[1:5] == [f"{name}.{kind}" for name in ("figure_3_thoracolumbar", "figure_4_cervical")
                          for kind in ("png", "svg")]  # fmt: skip
    assert len(names) == 5 + 9 * 4
    assert {path.suffix[1:] for path in found[5:]} == set(TABLE_FORMATS) - {"html"}
    assert all(path.stat().st_size > 300 for path in found)
    check(Page(found[0]), 4)


def test_few_formats_are_few_files(tmp_path):
    found = run_validation(make_set()[:1], tmp_path, ["csv", "csv"])
    assert len(found) == 9
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".csv"}
    assert [path.name for path in run_validation(make_set()[:1], tmp_path / "p", ["pdf"])] == [
        "figure_3_thoracolumbar.pdf", "figure_4_cervical.pdf",
    ]  # fmt: skip


def test_unknown_formats_and_empty_sets_write_nothing(tmp_path):
    def unread():
        raise AssertionError("read before the formats were checked")
        yield

    with pytest.raises(UnknownNameError, match="Format 'docx' is not in the validation; it has: html, png"):
        run_validation(unread(), tmp_path, ["docx"])
    with pytest.raises(ShapeError, match="no trials"):
        run_validation([], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert set(DEFAULT_FORMATS) < set(VALIDATION_FORMATS)


def test_without_matplotlib_tables_are_written_and_pictures_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    def unread():
        raise AssertionError("read before the package was missed")
        yield

    with pytest.raises(MissingDependencyError, match="matplotlib"):
        run_validation(unread(), tmp_path, ["png"])
    assert len(run_validation(make_set()[:1], tmp_path, ["txt"])) == 9


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure_3_thoracolumbar.png"
    path.write_bytes(b"old")

    def fail(self, file, **kwargs):
        file.write(b"half")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="disk is full"):
        run_validation(make_set()[:1], tmp_path, ["png"])
    assert os.listdir(tmp_path) == ["figure_3_thoracolumbar.png"]
    assert path.read_bytes() == b"old"


def test_importing_loads_no_matplotlib():
    program = "import simspine_jax.viz.validate, sys; print('matplotlib' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.split()[-1] == "False"

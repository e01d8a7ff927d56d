"""The written page in a real browser: a headless Chromium draws it in software and takes a picture."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from simspine_jax.capture import add_marker_noise, synthetic_motion
from simspine_jax.viz.viewer import MARKER_COLOR, TARGET_COLOR, prepare_clip, write_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
WIDTH, HEIGHT = 800, 480
# Enough of the page's own time to start and to draw; each drawn picture takes seconds of ours.
VIRTUAL_TIME_MS = 700
TIMEOUT_S = 240
# The browser's notice about drawing in software stands left of this part of the picture, our legend right
# of it, and the playback bar below it.
LEFT, RIGHT, BAR = 285, 525, 440
# Points are shaded towards their rim.
COLOR_TOLERANCE = 24


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to look with: none of {', '.join(BROWSERS)} is on this machine")
    return found


@pytest.fixture(scope="module")
def picture(browser, spine_model, tmp_path_factory):
    """RGB 0 … 255 [H, W, 3] of a page with capsules, markers and targets a few centimetres off."""
    import jax
    from matplotlib.image import imread

    folder = tmp_path_factory.mktemp("viewer")
    q = synthetic_motion(spine_model, 8, 20.0, 1, "walk")
    clip = prepare_clip(spine_model, q, None, 20.0)
    targets = add_marker_noise(clip.markers, 0.03, jax.random.key(0))
    page = write_html(spine_model, q, folder / "page.html", targets, rate_hz=20.0)
    command = [
        browser,
        *OPTIONS.split(),
        f"--window-size={WIDTH},{HEIGHT}",
        f"--virtual-time-budget={VIRTUAL_TIME_MS}",
        f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={folder / 'page.png'}",
        page.path.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    return np.rint(imread(folder / "page.png")[..., :3] * 255).astype(int)


def scene_part(picture):
    return picture[:BAR, LEFT:RIGHT]


def close_to(picture, color):
    return (np.abs(picture - np.array(color)) <= COLOR_TOLERANCE).all(axis=-1)


def capsules(picture):
    """Lit and shaded, their colour varies, but it stays a warm grey, which nothing else is."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red - blue >= 10) & (red - blue <= 70) & (red >= green) & (green >= blue) & (red < 235)


def test_markers_targets_and_body_are_drawn(picture):
    part = scene_part(picture)
    assert close_to(part, TARGET_COLOR).sum() > 100
    assert close_to(part, MARKER_COLOR).sum() > 100
    assert capsules(part).sum() > 1000


def test_the_person_is_upright_and_fully_in_view(picture):
    rows, columns = np.nonzero(capsules(scene_part(picture)))
    height, width = np.ptp(rows), np.ptp(columns)
    assert 0.55 * BAR < height < 0.97 * BAR
    assert height > width
    assert columns.min() > 0
    assert columns.max() < RIGHT - LEFT - 1

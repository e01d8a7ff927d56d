"""The written page in a real browser: a headless Chromium draws it in software and takes a picture."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
from urllib.request import urlopen

import numpy as np
import pytest
from websockets.sync.client import connect

from simspine_jax.capture import add_marker_noise, synthetic_motion
from simspine_jax.viz.ellipsoids import ellipsoids_of
from simspine_jax.viz.viewer import MARKER_COLOR, TARGET_COLOR, prepare_clip, write_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
WIDTH, HEIGHT = 800, 480
# A picture drawn in software takes seconds, and a busy machine's start of the browser many.
DEADLINE_S = 240
DRAWS = "document.createElement('canvas').getContext('webgl2') !== null"
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

    folder = tmp_path_factory.mktemp("viewer")
    q = synthetic_motion(spine_model, 8, 20.0, 1, "walk")
    clip = prepare_clip(spine_model, q, None, 20.0)
    targets = add_marker_noise(clip.markers, 0.03, jax.random.key(0))
    page = write_html(spine_model, q, folder / "page.html", targets, rate_hz=20.0)
    until = time.monotonic() + DEADLINE_S
    with Browser(browser, page.path.as_uri(), folder / "profile", until) as view:
        view.prepare()
        return view.picture_of(lambda part: close_to(part, TARGET_COLOR).any(), "a target")


class Browser:
    """A page in a headless browser, spoken to by Chrome's DevTools protocol."""

    def __init__(self, program, url, profile, until):
        options = [*OPTIONS.split(), "--remote-debugging-port=0", f"--user-data-dir={profile}", url]
        self.process = subprocess.Popen(
            [program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.until, self.asked = until, 0
        try:
            port = self.wait_for_port(profile / "DevToolsActivePort")
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=DEADLINE_S) as answer:
                tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
            self.socket = connect(tab["webSocketDebuggerUrl"], max_size=None)
        except BaseException:
            self.process.kill()
            raise

    def wait_for_port(self, path):
        while time.monotonic() < self.until:
            if path.exists() and (lines := path.read_text().splitlines()):
                return int(lines[0])
            assert self.process.poll() is None, f"the browser ended with {self.process.returncode}"
            time.sleep(0.1)
        pytest.fail(f"the browser has not started after {DEADLINE_S} s")

    def ask(self, method, **params):
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": params}))
        while True:
            reply = json.loads(self.socket.recv(timeout=max(self.until - time.monotonic(), 0)))
            if reply.get("id") == self.asked:
                assert "result" in reply, f"{method}: {reply}"
                return reply["result"]

    def prepare(self):
        """Skips where nothing can be drawn; gives the page its size."""
        if not self.evaluate(DRAWS):
            pytest.skip("the browser draws nothing in three dimensions on this machine")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression):
        return self.ask("Runtime.evaluate", expression=expression)["result"].get("value")

    def picture_of(self, shows, what):
        """The first picture whose part with the scene shows what is waited for."""
        from matplotlib.image import imread

        while time.monotonic() < self.until:
            encoded = self.ask("Page.captureScreenshot", format="png")["data"]
            picture = np.rint(imread(io.BytesIO(base64.b64decode(encoded)))[..., :3] * 255).astype(int)
            if shows(scene_part(picture)):
                return picture
            time.sleep(0.5)
        pytest.fail(f"{what} is not seen after {DEADLINE_S} s")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait()


def scene_part(picture):
    return picture[:BAR, LEFT:RIGHT]


def close_to(picture, color):
    return (np.abs(picture - np.array(color)) <= COLOR_TOLERANCE).all(axis=-1)


def capsules(picture):
    """Lit and shaded, their colour varies, but it stays a warm grey, which nothing else is."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red - blue >= 10) & (red - blue <= 70) & (red >= green) & (green >= blue) & (red < 235)


def violet(picture):
    """Ellipsoids, through which other things shine."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red - green >= 25) & (blue - green >= 25)


def amber(picture):
    """Those that are cut."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red - blue >= 40) & (green - blue >= 15) & ~capsules(picture)


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


def test_a_box_hides_ellipsoids_and_shows_them_again(browser, spine_model, tmp_path):
    q = synthetic_motion(spine_model, 8, 20.0, 1, "walk")
    markers = prepare_clip(spine_model, q, None, 20.0).markers
    covariance = np.zeros((*markers.shape, 3)) + 4e-4 * np.eye(3)
    covariance[:, 3] = 4 * np.eye(3)
    shells = ellipsoids_of(covariance, 0.9)
    page = write_html(spine_model, q, tmp_path / "page.html", rate_hz=20.0, ellipsoids=shells)
    until = time.monotonic() + DEADLINE_S
    with Browser(browser, page.path.as_uri(), tmp_path / "profile", until) as view:
        view.prepare()
        many = view.picture_of(lambda part: violet(part).sum() > 500, "an ellipsoid")
        assert amber(scene_part(many)).sum() > 2000
        click = "{const box = document.querySelector('label input'); box.click(); box.checked}"
        assert view.evaluate(click) is False
        none = view.picture_of(lambda part: not violet(part).any(), "the body without ellipsoids")
        assert not amber(scene_part(none)).any()
        assert capsules(scene_part(none)).sum() > 1000
        time.sleep(2.5 * len(q) / 20)  # through loops, which draw everything anew
        assert not violet(scene_part(view.picture_of(lambda part: True, "the body"))).any()
        assert view.evaluate(click) is True
        view.picture_of(lambda part: violet(part).sum() > 500, "an ellipsoid again")

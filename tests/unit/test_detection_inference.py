"""A detector in use: pixels in the order of its weights, the flip test, and keypoints of the codec."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simspine_jax.detection import inference
from simspine_jax.detection.codecs import MsraMap, SimCC, UdpMap, flip_mean
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.inference import GROUP, Detector, network_outputs
from simspine_jax.detection.models import DETECTORS, PixelOptions, build_detector, codec_of
from simspine_jax.detection.photometric import normalise
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.errors import ShapeError, SimspineError

pytestmark = pytest.mark.usefixtures("float32")

TINY = RTMPoseOptions(CSPNeXtOptions(0.33, 0.125), size=(64, 64))


def crops(count: int, size: tuple[int, int] = TINY.size) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_each_detector_has_the_codec_of_its_paper() -> None:
    codecs = {name: type(codec_of(options)) for name, options in DETECTORS.items()}
    assert codecs == {
        "spinepose_s": SimCC, "spinepose_m": SimCC, "spinepose_l": SimCC, "rtmpose_m": SimCC,
        "hrnet_w32": MsraMap, "vitpose_b": UdpMap,
    }  # fmt: skip


@pytest.mark.parametrize("flip", [False, True])
def test_a_detector_gives_what_its_model_and_codec_give(flip: bool) -> None:
    model, pixels = build_detector(TINY), crops(3)
    codec = codec_of(TINY)
    seen = np.concatenate([pixels, pixels[:, :, ::-1]])
    both = nnx.jit(lambda model, seen: model(normalise(seen)))(model, seen)
    output, mirrored = (
        jax.tree.map(lambda leaf, half=half: leaf[half], both) for half in (slice(3), slice(3, 6))
    )
    if flip:
        output = flip_mean(codec, output, mirrored)
    wanted = codec.decode(output)
    found = Detector.of(model, TINY, flip=flip)(pixels)
    assert isinstance(found.keypoints, np.ndarray)
    # Fusing changes the last bits of logits, never a peak by more than a bin.
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, atol=0.5)


def test_the_order_of_colours_is_the_weights_own() -> None:
    pixels = crops(2)
    mean, std = (1.0, 2.0, 3.0), (2.0, 4.0, 8.0)
    found = np.asarray(PixelOptions("BGR", mean, std).normalise(pixels))
    np.testing.assert_allclose(found[..., 0], (pixels[..., 2] - 1.0) / 2.0)
    np.testing.assert_allclose(found[..., 2], (pixels[..., 0] - 3.0) / 8.0)
    # To float32's rounding of a division and a product.
    np.testing.assert_allclose(PixelOptions().normalise(pixels), normalise(jnp.asarray(pixels)), atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SimspineError, match="valid are RGB, BGR"):
        PixelOptions("GRB")  # type: ignore[arg-type]
    with pytest.raises(SimspineError, match="above 0"):
        PixelOptions(std=(1.0, 0.0, 1.0))
    with pytest.raises(ShapeError, match=r"valid is \[B 64 64 3\]"):
        Detector.of(build_detector(TINY), TINY)(crops(1, (64, 32)))


def test_a_large_batch_goes_through_in_groups_and_gives_what_each_crop_gives_alone() -> None:
    model, pixels = build_detector(TINY), crops(GROUP + 3)
    detector = Detector.of(model, TINY)
    together, alone = detector(pixels), [detector(pixels[i : i + 1]) for i in range(len(pixels))]
    np.testing.assert_array_equal(together.keypoints, np.concatenate([one.keypoints for one in alone]))
    np.testing.assert_allclose(together.score, np.concatenate([one.score for one in alone]), rtol=1e-5)
    seen = normalise(jnp.asarray(pixels))
    found = network_outputs(*nnx.split(model), seen)
    for ours, theirs in zip(found, model(seen), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(jnp.abs(theirs).max()))


def test_an_xla_that_does_not_know_the_options_computes_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (inference._options, inference._compiled):
        cached.cache_clear()
    monkeypatch.setattr(inference, "YNNPACK", {"xla_of_another_day": "true"})
    assert inference._options() == {}
    assert np.isfinite(Detector.of(build_detector(TINY), TINY)(crops(2)).score).all()
    for cached in (inference._options, inference._compiled):
        cached.cache_clear()

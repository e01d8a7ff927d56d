"""Detectors beside PyTorch: converted weights give the same outputs, keypoints, statistics and gradients."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch2flax.detectors import fitting_keypoints, load_detector, mapping  # noqa: E402
from torch2flax.reading import read_state_dict  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import detection_references as theirs  # noqa: E402

sys.path.pop(0)

from simspine_jax.detection.cspnext import CSPNeXtOptions  # noqa: E402
from simspine_jax.detection.hrnet import HRNet, HRNetOptions  # noqa: E402
from simspine_jax.detection.models import DETECTORS, build_detector  # noqa: E402
from simspine_jax.detection.rtmpose import RTMPose, RTMPoseOptions  # noqa: E402
from simspine_jax.detection.vitpose import ViTPose, ViTPoseOptions  # noqa: E402
from simspine_jax.errors import FileFormatError  # noqa: E402

pytestmark = pytest.mark.usefixtures("float32")

# float32 through up to a hundred layers, as a share of the largest output.
AGREEMENT = 1e-4

SIZE = (64, 96)
SMALL_RTMPOSE = RTMPoseOptions(CSPNeXtOptions(0.1, 0.25), keypoints=5, size=SIZE)
SMALL_HRNET = HRNetOptions(width=8, modules=(1, 1, 1), keypoints=5, size=SIZE)
SMALL_VITPOSE = ViTPoseOptions(width=32, layers=2, heads=2, keypoints=5, size=SIZE)


def empty(kind, options):
    """A model without numbers; loading gives it all of them."""
    return nnx.eval_shape(lambda: kind(options, rngs=nnx.Rngs(0)))


def plain(module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def pictures_of(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


def outputs_of(model, pictures: np.ndarray) -> list[np.ndarray]:
    """Each with the scores of a keypoint's places on the last axis."""
    found = nnx.jit(lambda m, x: m(x))(model, pictures)
    return [np.asarray(part) for part in found] if isinstance(found, tuple) else [flat(found)]


def their_outputs(module, pictures: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        found = module(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    if isinstance(found, tuple):
        return [part.numpy() for part in found]
    return [flat(found.permute(0, 2, 3, 1).numpy())]


def flat(maps) -> np.ndarray:
    maps = np.asarray(maps)
    return np.moveaxis(maps, -1, 1).reshape(len(maps), maps.shape[-1], -1)


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for ours, other in zip(found, wanted, strict=True):
        largest = np.abs(other).max()
        assert other.std() > 0.05 * largest
        np.testing.assert_allclose(ours, other, rtol=0, atol=AGREEMENT * largest)
        np.testing.assert_array_equal(ours.argmax(-1), other.argmax(-1))
        assert len(np.unique(other.argmax(-1))) > 2


@pytest.mark.parametrize("name", DETECTORS)
def test_converted_weights_give_the_same_outputs_and_keypoints(name: str) -> None:
    module = theirs.peer(DETECTORS[name])
    weights = plain(module)
    model = nnx.eval_shape(partial(build_detector, DETECTORS[name]))
    matched = load_detector(model, weights)
    assert matched.tensors + len(matched.ignored) == len(weights)
    pictures = pictures_of(1, (256, 192))
    assert_same(outputs_of(model, pictures), their_outputs(module, pictures))


def small_vitpose(seed: int = 0):
    return theirs.stirred(theirs.ViTPose(32, 2, 2, 5, SIZE), seed)


def mmpose_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renames = {
        "keypoint_head": "head",
        r"patch_embed\.proj": "patch_embed.projection",
        r"blocks\.": "layers.",
        r"\.norm(\d)": r".ln\1",
        r"mlp\.fc1": "ffn.layers.0.0",
        r"mlp\.fc2": "ffn.layers.1",
        "last_norm": "ln1",
    }
    return renamed(weights, renames)


def renamed(weights: dict[str, np.ndarray], renames: dict[str, str]) -> dict[str, np.ndarray]:
    found = {}
    for name, value in weights.items():
        for old, new in renames.items():
            name = re.sub(old, new, name)
        found[name] = value
    return found


@pytest.mark.parametrize("rows", ["as many as places", "one more, of a class token"])
def test_mmposes_vitpose_has_no_row_for_all_places(rows: str) -> None:
    module = small_vitpose()
    with torch.no_grad():
        module.backbone.pos_embed[:, 0] = 0
    weights = mmpose_names(plain(module))
    if rows == "as many as places":
        weights["backbone.pos_embed"] = weights["backbone.pos_embed"][:, 1:]
    else:
        weights["backbone.pos_embed"][:, 0] = 7.0  # not looked at
    model = empty(ViTPose, SMALL_VITPOSE)
    assert load_detector(model, weights).layout == "MMPose"
    pictures = pictures_of(2, SIZE)
    assert_same(outputs_of(model, pictures), their_outputs(module, pictures))


def without_prefix(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return renamed(weights, {r"^backbone\.": "", r"^head\.": ""})


def old_head(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return renamed(weights, {r"^head\.": "keypoint_head."})


@pytest.mark.parametrize(("change", "layout"), [(without_prefix, "HRNet"), (old_head, "MMPose")])
def test_hrnets_other_names_are_known(change: Callable, layout: str) -> None:
    module = theirs.stirred(theirs.HRNet(8, (1, 1, 1), 5))
    model = empty(HRNet, SMALL_HRNET)
    assert load_detector(model, change(plain(module))).layout == layout
    pictures = pictures_of(2, SIZE)
    assert_same(outputs_of(model, pictures), their_outputs(module, pictures))


def test_transformers_vitpose_is_ours() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    inner = transformers.VitPoseBackboneConfig(
        image_size=SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=4,
        layer_norm_eps=1e-6,
        out_indices=[2],
    )
    config = transformers.VitPoseConfig(backbone_config=inner, num_labels=5, use_simple_decoder=False)
    module = theirs.stirred(transformers.VitPoseForPoseEstimation(config))
    model = empty(ViTPose, SMALL_VITPOSE)
    assert load_detector(model, plain(module)).layout == "transformers"
    pictures = pictures_of(2, SIZE)
    with torch.no_grad():
        maps = module(torch.from_numpy(pictures).permute(0, 3, 1, 2)).heatmaps
    assert_same(outputs_of(model, pictures), [flat(maps.permute(0, 2, 3, 1).numpy())])


def transformers_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renames = {
        "keypoint_head": "head",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        r"blocks\.": "encoder.layer.",
        r"\.norm1": ".layernorm_before",
        r"\.norm2": ".layernorm_after",
        r"attn\.proj": "attention.output.dense",
        "last_norm": "layernorm",
        r"deconv_layers\.0": "deconv1",
        r"deconv_layers\.1": "batchnorm1",
        r"deconv_layers\.3": "deconv2",
        r"deconv_layers\.4": "batchnorm2",
        r"final_layer": "conv",
    }
    found = renamed(weights, renames)
    for name in [n for n in found if "attn.qkv" in n]:
        for part, value in zip(("query", "key", "value"), np.split(found.pop(name), 3), strict=True):
            found[name.replace("attn.qkv", f"attention.attention.{part}")] = value
    return found


def test_queries_keys_and_values_may_be_apart() -> None:
    module = small_vitpose()
    model = empty(ViTPose, SMALL_VITPOSE)
    assert load_detector(model, transformers_names(plain(module))).layout == "transformers"
    pictures = pictures_of(2, SIZE)
    assert_same(outputs_of(model, pictures), their_outputs(module, pictures))


def test_training_has_the_same_gradients_and_moves_the_same_statistics() -> None:
    module = theirs.stirred(theirs.RTMPose(0.1, 0.25, 5, SIZE)).train()
    model = empty(RTMPose, SMALL_RTMPOSE)
    load_detector(model, plain(module))
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    pictures = pictures_of(8, SIZE)

    @jax.jit
    def both(params):
        def loss(params):
            trained = nnx.merge(structure, params, rest, copy=True)
            x, y = trained(jnp.asarray(pictures), key=jax.random.key(0))
            return (x**2).mean() + (y**2).mean(), nnx.state(trained, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, statistics), gradients = both(params)
    x, y = module(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    wanted = (x**2).mean() + (y**2).mean()
    wanted.backward()
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-4)
    # Through some forty normalisations over the batch.
    first = module.backbone.stem[0].conv.weight.grad.numpy().transpose(2, 3, 1, 0)
    found = np.asarray(gradients["backbone"]["stem"][0]["conv"]["kernel"][...])
    np.testing.assert_allclose(found, first, rtol=0, atol=1e-3 * np.abs(first).max())
    after, ours = module.state_dict(), dict(nnx.to_flat_state(statistics))
    checked = 0
    for source in mapping(model, plain(module))[1]:
        path = tuple(int(w) if w.isdigit() else w for w in source.path.split("."))
        if path in ours:
            other = after[source.names[0]].numpy()
            np.testing.assert_allclose(ours[path][...], other, rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked == len(ours) > 60


def test_a_checkpoint_file_is_read(tmp_path: Path) -> None:
    module = theirs.stirred(theirs.RTMPose(0.1, 0.25, 5, SIZE))
    mean = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    extra = {"data_preprocessor.mean": mean, **module.state_dict()}
    torch.save({"meta": {"epoch": 3}, "state_dict": extra}, tmp_path / "pose.pth")
    model = empty(RTMPose, SMALL_RTMPOSE)
    matched = load_detector(model, read_state_dict(tmp_path / "pose.pth"), "pose.pth")
    assert "data_preprocessor.mean" in matched.ignored
    assert "by MMPose's names" in str(matched)
    wanted = module.backbone.stem[1].conv.weight.detach().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(model.backbone.stem[1].conv.kernel[...], wanted)


@pytest.mark.parametrize("name", ["pose.safetensors", "pose.SafeTensors", "POSE.SAFETENSORS"])
def test_safetensors_are_known_by_their_ending_in_any_case(tmp_path: Path, name: str) -> None:
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numpy.save_file({"a": np.arange(3.0)}, tmp_path / name)
    found = read_state_dict(tmp_path / name)
    assert {key: value.tolist() for key, value in found.items()} == {"a": [0, 1, 2]}


def test_halves_in_safetensors_are_read(tmp_path: Path) -> None:
    torch_files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    kept = {"a": torch.tensor([0.5, -3.0], dtype=torch.bfloat16), "b": torch.ones(2, 1, dtype=torch.float16)}
    torch_files.save_file(kept, tmp_path / "half.safetensors")
    found = read_state_dict(tmp_path / "half.safetensors")
    assert {name: (x.dtype.name, x.tolist()) for name, x in found.items()} == {
        "a": ("float32", [0.5, -3.0]), "b": ("float32", [[1.0], [1.0]]),
    }  # fmt: skip


def test_bytes_that_are_no_pickle_are_refused(tmp_path: Path) -> None:
    for content in (b"\x80\x02.", b"\x80\x02]q\x00.", b"PK\x03\x04"):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(FileFormatError, match="valid is a"):
            read_state_dict(tmp_path / "w.pth")


def test_objects_beside_tensors_are_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": Counter()}, tmp_path / "epoch_1.pth")
    with pytest.raises(
        FileFormatError, match=r"MMEngine's epochs do, .* valid is its state_dict alone"
    ) as told:
        read_state_dict(tmp_path / "epoch_1.pth")
    assert str(told.value).isprintable()


class Counter:
    """What no reader of tensors knows."""


def _drop(weights: dict, name: str) -> None:
    del weights[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: _drop(w, "head.gau.uv.weight"),
            "lacks head.gau.uv.weight; valid are weights of RTMPose",
        ),
        (lambda w: w.update({"neck.conv.weight": np.zeros(3)}), "also has neck.conv.weight"),
        (lambda w: w.update({"head.cls_x.weight": np.zeros((3, 4))}), r"\(3, 4\) \(valid is \(192, 256\)\)"),
        (
            lambda w: w.update({"head.final_layer.weight": np.zeros(3)}),
            r"\(3,\) \(valid is \(5, 256, 7, 7\)\)",
        ),
        (
            lambda w: _drop(w, "backbone.stem.0.conv.weight"),
            "valid are the names of RTMPose, with backbone.stem",
        ),
        (
            lambda w: w.update({"data_preprocessor.std": np.ones(3)}),
            r"data_preprocessor.std that colours are normalised by \[1.0, 1.0, 1.0\]; valid is \[58.395",
        ),
        (lambda w: w.clear(), "no tensors; valid are the names of RTMPose"),
    ],
)
def test_other_weights_are_refused_by_name(change: Callable, says: str) -> None:
    weights = plain(theirs.RTMPose(0.1, 0.25, 5, SIZE))
    change(weights)
    with pytest.raises(FileFormatError, match=says):
        load_detector(empty(RTMPose, SMALL_RTMPOSE), weights, "pose.pth")


def test_weights_of_another_detector_are_refused() -> None:
    weights = plain(theirs.RTMPose(0.1, 0.25, 5, SIZE))
    with pytest.raises(FileFormatError, match="valid are the names of ViTPose"):
        load_detector(empty(ViTPose, SMALL_VITPOSE), weights)


@pytest.mark.parametrize(
    ("kind", "options", "make"),
    [
        (RTMPose, SMALL_RTMPOSE, lambda k: theirs.RTMPose(0.1, 0.25, k, SIZE)),
        (HRNet, SMALL_HRNET, lambda k: theirs.HRNet(8, (1, 1, 1), k)),
        (ViTPose, SMALL_VITPOSE, lambda k: theirs.ViTPose(32, 2, 2, k, SIZE)),
    ],
)
def test_weights_of_other_keypoints_are_told_from_others(kind, options, make: Callable) -> None:
    model = empty(kind, options)
    weights = plain(make(17))
    assert fitting_keypoints(model, weights) == 17
    assert fitting_keypoints(model, plain(make(5))) == 5
    with pytest.raises(FileFormatError, match="of a model of another size"):
        load_detector(model, weights)
    assert fitting_keypoints(model, {**weights, "neck.weight": np.zeros(3)}) is None
    assert fitting_keypoints(model, {}) is None
    name = next(n for n in weights if n.startswith("backbone") and weights[n].ndim == 4)
    assert fitting_keypoints(model, {**weights, name: weights[name][:-1]}) is None

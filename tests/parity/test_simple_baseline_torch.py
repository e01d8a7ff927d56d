"""SimpleBaseline3D beside PyTorch: converted weights give the same outputs and the same gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from lifting_clips import make_batch, make_statistics

from simspine_jax.errors import FileFormatError
from simspine_jax.lifting.simple_baseline import SimpleBaseline, SimpleBaselineOptions
from simspine_jax.skeleton import KEYPOINT_NAMES, REDUCED_NAMES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch2flax.reading import read_state_dict  # noqa: E402
from torch2flax.simple_baseline import load_simple_baseline  # noqa: E402

pytestmark = pytest.mark.usefixtures("float32")

# Both sum a thousand products in float32, in another order: 1e-5 of outputs of about 1.
AGREEMENT = 1e-5


class Port(torch.nn.Module):
    """The names of the PyTorch port of the original."""

    def __init__(self, n_in: int, n_out: int, width: int = 1024) -> None:
        super().__init__()
        self.w1, self.batch_norm1 = torch.nn.Linear(n_in, width), torch.nn.BatchNorm1d(width)
        self.linear_stages = torch.nn.ModuleList([PortBlock(width) for _ in range(2)])
        self.w2, self.dropout = torch.nn.Linear(width, n_out), torch.nn.Dropout(0.5)

    def forward(self, x):
        y = self.dropout(torch.relu(self.batch_norm1(self.w1(x))))
        for stage in self.linear_stages:
            y = stage(y)
        return self.w2(y)


class PortBlock(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.batch_norm1 = torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width)
        self.w2, self.batch_norm2 = torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        y = self.dropout(torch.relu(self.batch_norm1(self.w1(x))))
        return x + self.dropout(torch.relu(self.batch_norm2(self.w2(y))))


class ConvNorm(torch.nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(n_in, n_out, 1, bias=False)
        self.bn = torch.nn.BatchNorm1d(n_out)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Temporal(torch.nn.Module):
    """The names of MMPose, whose layers are convolutions over one frame."""

    def __init__(self, n_in: int, n_out: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.expand_conv = ConvNorm(n_in, width)
        self.backbone.tcn_blocks = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
        for block in self.backbone.tcn_blocks:
            block.conv1, block.conv2 = ConvNorm(width, width), ConvNorm(width, width)
        self.head = torch.nn.Module()
        self.head.conv = torch.nn.Conv1d(width, n_out, 1)

    def forward(self, x):
        y = self.backbone.expand_conv(x[..., None])
        for block in self.backbone.tcn_blocks:
            y = y + block.conv2(block.conv1(y))
        return self.head.conv(y)[..., 0]


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """The module in use, its normalisation no identity."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dtype.is_floating_point and ("bn" in name or "batch_norm" in name):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return module.eval()


def flax_model(names: tuple[str, ...], width: int = 1024, rate: float = 0.5) -> SimpleBaseline:
    return SimpleBaseline(SimpleBaselineOptions(width, 2, rate), make_statistics(names), rngs=nnx.Rngs(0))


def inputs_of(seen, names: tuple[str, ...]) -> np.ndarray:
    statistics = make_statistics(names)
    standard = (np.asarray(seen.pixels) - statistics.mean_2d) / statistics.std_2d
    return (
        np.where(np.asarray(seen.mask)[..., None], standard, 0).reshape(len(standard), -1).astype(np.float32)
    )


@pytest.mark.parametrize("names", [REDUCED_NAMES, KEYPOINT_NAMES])
@pytest.mark.parametrize(("kind", "width"), [(Port, 1024), (Temporal, 64)])
def test_converted_weights_give_the_same_outputs(kind, width: int, names, tmp_path: Path) -> None:
    module = stirred(kind(2 * len(names), 3 * len(names) - 3, width))
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, tmp_path / "lifter.pth")
    model = flax_model(names, width)
    load_simple_baseline(model, read_state_dict(tmp_path / "lifter.pth"))
    seen, _ = make_batch(32, names=names)
    with torch.no_grad():
        wanted = module(torch.from_numpy(inputs_of(seen, names))).numpy()
    found = np.asarray(model.standardised(seen, None)).reshape(wanted.shape)
    assert np.abs(wanted).max() > 0.3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=AGREEMENT * max(1, np.abs(wanted).max()))


def test_gradients_are_the_same_without_dropout() -> None:
    names = REDUCED_NAMES
    module = Port(2 * len(names), 3 * len(names) - 3, 64)
    model = flax_model(names, 64, rate=0.0)
    load_simple_baseline(model, {n: v.numpy() for n, v in module.state_dict().items()})
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    seen, target = make_batch(48, names=names)
    whole = jax.tree.map(lambda x: jnp.ones_like(x) if x.dtype == bool else x, target)
    structure, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_of(params):
        return nnx.merge(structure, params, rest, copy=True).loss(seen, whole, key=jax.random.key(0))[0]

    loss, gradients = jax.value_and_grad(loss_of)(params)
    root, statistics = names.index("hip"), make_statistics(names)
    relative = np.asarray(target.keypoints) - np.asarray(target.keypoints)[:, [root]]
    wanted = np.delete((relative - statistics.mean_3d) / statistics.std_3d, root, 1).reshape(48, -1)
    module.train()
    theirs = torch.nn.functional.mse_loss(
        module(torch.from_numpy(inputs_of(seen, names))), torch.from_numpy(wanted.astype(np.float32))
    )
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-5)
    ours = np.asarray(gradients["stack"]["stem"]["linear"]["kernel"][...])
    there = module.w1.weight.grad.numpy().T
    # Through four normalisations over 48 samples.
    np.testing.assert_allclose(ours, there, rtol=0, atol=1e-4 * np.abs(there).max())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("linear_stages.1.w2.weight"), "lacks linear_stages.1.w2.weight"),
        (lambda w: w.update({"linear_stages.2.w1.weight": np.zeros((64, 64))}), "also has linear_stages.2"),
        (lambda w: w.update({"w2.bias": np.zeros(7)}), r"w2.bias of .* has the shape \(7,\)"),
        (lambda w: w.pop("w1.weight"), "valid are the names of SimpleBaseline3D"),
    ],
)
def test_other_weights_are_refused_by_name(change, says: str) -> None:
    weights = {n: v.numpy() for n, v in Port(30, 42, 64).state_dict().items()}
    change(weights)
    with pytest.raises(FileFormatError, match=says):
        load_simple_baseline(flax_model(REDUCED_NAMES, 64), weights)


def test_files_that_hold_more_than_weights_are_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"state_dict": Harm()}, tmp_path / "bad.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "bad.pth").read_bytes()[:200])
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad.pth", "cut.pth", "list.pth", "none.pth"):
        with pytest.raises(FileFormatError, match=name):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "harm").exists()

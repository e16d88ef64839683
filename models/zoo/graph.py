"""Writes an ONNX graph node by node, with the names and the detours of PyTorch's exporter."""

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper


class Graph:
    """A growing graph. Every method that adds a node returns the name of its output."""

    def __init__(self):
        self.nodes = []
        self.initializers = []
        self._count = 0

    def weight(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, array):
        return self.add("Constant", [], value=numpy_helper.from_array(np.asarray(array)))

    def add(self, op, inputs, output=None, **attributes):
        self._count += 1
        output = output or f"/{op}_{self._count}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{op}_{self._count}", **attributes))
        return output

    def pad(self, x, sides, rank=4):
        """`torch.nn.functional.pad` with zeros as the exporter writes it. `sides` counts from the last dimension, as
        torch does; the exporter turns it round in the graph, where an importer has to see that the result is constant.
        """
        missing = self.add(
            "ConstantOfShape",
            [self.constant(np.array([2 * rank - len(sides)], np.int64))],
            value=helper.make_tensor("value", TensorProto.INT64, [1], [0]),
        )
        pairs = self.add("Concat", [self.constant(np.array(sides, np.int64)), missing], axis=0)
        pairs = self.add("Reshape", [pairs, self.constant(np.array([-1, 2], np.int64))])
        first, last, axis, step = (self.constant(np.array([v], np.int64)) for v in (-1, -(2**63) + 1, 0, -1))
        turned = self.add("Slice", [pairs, first, last, axis, step])
        turned = self.add("Transpose", [turned], perm=[1, 0])
        turned = self.add("Reshape", [turned, self.constant(np.array([-1], np.int64))])
        turned = self.add("Cast", [turned], to=TensorProto.INT64)
        return self.add("Pad", [x, turned, ""], mode="constant")

    def save(self, path, name, inputs, outputs):
        """Writes the model with opset 17. `inputs` and `outputs` are (name, dimensions) of float32 tensors, or (name,
        dimensions, element type). The bytes depend on nothing but the weights and the version of `onnx`."""
        kind = lambda more: more[0] if more else TensorProto.FLOAT
        info = [[helper.make_tensor_value_info(n, kind(more), d) for n, d, *more in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, name, *info, initializer=self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="hone"
        )
        checker.check_model(model, full_check=True)
        with open(path, "wb") as f:
            f.write(model.SerializeToString(deterministic=True))

"""What the small models share: ONNX written node by node, a folder `hone export` takes, a world of samples.

Every one of them is `make.py` beside a card: it takes real data from packages, trains for seconds, writes
`build/` (graph, configuration, recorded cases; not kept) and `world/` (samples with labels). The world is a function of its seed; training is
one but for how PyTorch rounds sums, which differs from run to run and machine to machine, so that a model made again is a like one.
"""

import csv
import json
import pathlib
import shutil

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


class Graph:
    """Collects nodes and initialisers."""

    def __init__(self):
        self.nodes, self.initialisers = [], []

    def constant(self, name, value):
        value = np.ascontiguousarray(value)
        self.initialisers.append(numpy_helper.from_array(value.astype(np.float32) if value.dtype == np.float64 else value, name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def dense(self, x, name, weight, bias, out):
        """`x weightᵀ + bias`, weight [out, in]."""
        return self.node("Gemm", [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)], out, transB=1)

    def model(self, name, inputs, width, outputs):
        """`inputs` are (name, ONNX type, shape); `feature` [N, width] and `logits` [N, outputs] are the outputs."""
        value = helper.make_tensor_value_info
        ports = [value(n, kind, ["N", *shape]) for n, kind, shape in inputs]
        outs = [value("logits", TensorProto.FLOAT, ["N", outputs]), value("feature", TensorProto.FLOAT, ["N", width])]
        proto = helper.make_model(
            helper.make_graph(self.nodes, name, ports, outs, self.initialisers),
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name=name,
        )
        proto.ir_version = IR_VERSION
        onnx.checker.check_model(proto, full_check=True)
        return proto


def write(here, proto, labels, recipe, head, cases, files):
    """`build/` as `hone export` takes it.

    `recipe` lacks feature, logits and head, which are the same for all; `head` holds the tensors of
    head.safetensors; `cases` are inputs; `files` are further configuration files by name, dicts as JSON.
    """
    source = pathlib.Path(here) / "build"
    shutil.rmtree(source, ignore_errors=True)
    (source / "config").mkdir(parents=True)
    (source / "check").mkdir()
    (source / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    recipe = recipe | {"feature": "feature", "logits": "logits", "head": {"weight": "head.weight", "bias": "head.bias"}}
    labels = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    for name, content in {"recipe.json": recipe, "config.json": labels, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
        (source / "config" / name).write_text(text)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v, np.float32) for k, v in head.items()}, source / "config/head.safetensors")
    shutil.copy(pathlib.Path(here) / "README.md", source / "config/README.md")
    session = onnxruntime.InferenceSession(str(source / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    for i, inputs in enumerate(cases):
        arrays = {f"in_{name}": value for name, value in inputs.items()}
        arrays |= {f"out_{name}": value for name, value in zip(names, session.run(None, inputs))}
        np.savez_compressed(source / f"check/case{i}.npz", **arrays)
    return session


def statistics(feature):
    """Mean and standard deviation of features, as a recipe has them."""
    return [round(float(x), 6) for x in feature.mean(0)], [round(float(max(x, 1e-3)), 6) for x in feature.std(0)]


def world(here, columns, rows):
    """`world/index.csv`; rows are (split, label, values of `columns`). Returns the folder."""
    folder = pathlib.Path(here) / "world"
    folder.mkdir(exist_ok=True)
    with open(folder / "index.csv", "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["split", "label", *columns])
        for split, label, values in rows:
            out.writerow([split, label, *values])
    return folder


def fresh(here):
    """An empty `world/`."""
    folder = pathlib.Path(here) / "world"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def grey_image(height, width):
    """`image_processor` of `preprocessor_config.json` for grey levels from -1 to 1."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_grayscale": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5],
        "image_std": [0.5],
    }


def sensors(names, unit, mean, scale):
    """`sensors.json` for one reading of each channel."""
    channels = [{"name": n, "unit": u, "mean": float(m), "scale": float(s)} for n, u, m, s in zip(names, unit, mean, scale)]
    return {"schema": "hone.sensors/1", "rate_hz": 1, "window": 1, "channels": channels}


def train(model, loss, batches, steps, rate=3e-3, seed=0):
    """A few seconds of Adam with a cosine; `batches(rng)` gives the arguments of `loss(model, ...)`."""
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, *batches(rng)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def array(tensor):
    return tensor.detach().numpy()

"""Records what PyPI `peft` computes with adapters that hone has written: peft.npz, peft-bias.npz.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 torch==2.15.0 onnxscript peft==0.21.2
    venv/bin/python record_peft.py model      # peft.onnx: a PyTorch model as its exporter writes it
    HONE_UPDATE=1 cargo test -p hone-runtime --lib scope::
    venv/bin/python record_peft.py            # NAME.npz: the adapter of NAME/ on the PyTorch model

`peft/` is what `hone adapter export --peft` writes for low-rank paths on the convolution and two linear layers and a trained
classifier, `peft-bias/` for low-rank paths on two of the layers and all biases, filled by the rule of `numbers` in
../../train/testdata/record.py.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "train/testdata"))
import record as walk  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = torch.nn.ModuleDict({"wide": torch.nn.Linear(8, 24), "narrow": torch.nn.Linear(24, 12)})
        self.classifier = torch.nn.Linear(12, 5)
        for name, p in self.named_parameters():
            with torch.no_grad():
                p.copy_(torch.tensor(walk.weight(name, list(p.shape)) if p.dim() > 1 else 0.1 * walk.numbers(name, p.numel())))

    def forward(self, image):
        x = torch.relu(self.stem(image)).mean((2, 3))
        x = torch.nn.functional.gelu(self.body["wide"](x))
        return self.classifier(torch.tanh(self.body["narrow"](x)))


def main():
    torch.set_num_threads(1)
    image = torch.tensor(walk.floats("peft/image", 4, 3, 12, 12))
    if sys.argv[1:] == ["model"]:
        n = torch.export.Dim("N", min=1, max=64)
        torch.onnx.export(Net().eval(), (image,), HERE / "peft.onnx", input_names=["image"], output_names=["logits"],
                          dynamic_shapes=({0: n},), dynamo=True, external_data=False)
        # Where on a disk the model was written down is nobody's business.
        proto = onnx.load(HERE / "peft.onnx")
        for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output,
                     *proto.graph.initializer]:
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        onnx.save(proto, HERE / "peft.onnx")
        return
    import peft
    from safetensors.torch import load_file as safe_load_file

    for name in ("peft", "peft-bias"):
        model = peft.PeftModel.from_pretrained(Net().eval(), HERE / name).eval()
        with torch.no_grad():
            out = model(image).numpy()
            bare = Net().eval()(image).numpy()
        print(name, "moved by", float(np.abs(out - bare).max()), "of", float(np.abs(bare).max()))
        # What PEFT writes again is what it has read: nothing of the adapter is lost on the way.
        read = set(safe_load_file(HERE / name / "adapter_model.safetensors"))
        kept = set(peft.get_peft_model_state_dict(model))
        assert read == kept, (sorted(read - kept), sorted(kept - read))
        np.savez_compressed(HERE / f"{name}.npz", image=image.numpy(), logits=out)


main()

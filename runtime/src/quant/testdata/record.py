"""Records what ONNX Runtime answers to the quantised models beside this file.

    pip install -r requirements.txt
    python models.py
    HONE_UPDATE=1 cargo test -p hone-runtime --lib quant::tests
    python record.py

`<model>.<scheme>.npz`: `out<i>` for each sample. Optimised as a user runs it, one thread. On x86 processors without
8-bit dot products ONNX Runtime's kernels for unsigned by signed bytes saturate; `session.x64quantprecision` makes it use
exact ones.
"""

import pathlib

import numpy as np
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent


def main():
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    for model in sorted(HERE.glob("*.*.onnx")):
        samples = np.load(HERE / (model.name.split(".")[0] + ".npz"))
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        given = [{k: samples[k][i] for k in samples.files} for i in range(len(samples[samples.files[0]]))]
        np.savez_compressed(model.with_suffix(".npz"), **{f"out{i}": session.run(None, g)[0] for i, g in enumerate(given)})
        print(model.name)


if __name__ == "__main__":
    main()

"""Records what ONNX Runtime answers to models with an adapter folded in: <model>.merged.npz.

    pip install -r ../../quant/testdata/requirements.txt
    HONE_UPDATE=1 cargo test -p hone-runtime --lib scope::
    python record_merged.py

One thread, with exact kernels for unsigned by signed bytes; models whose weights alone are quantised without the extended
optimisations, as `../../quant/testdata/record.py` explains.
"""

import pathlib

import numpy as np
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent
SAMPLES = HERE.parents[1] / "quant/testdata"


def main():
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    for model in sorted(HERE.glob("*.merged.onnx")):
        samples = np.load(SAMPLES / (model.name.split(".")[0] + ".npz"))
        weights_only = "int8-weights" in model.name or "int4" in model.name
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if weights_only else level.ORT_ENABLE_ALL
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        given = [{k: samples[k][i] for k in samples.files} for i in range(len(samples[samples.files[0]]))]
        np.savez_compressed(model.with_suffix(".npz"), **{f"out{i}": session.run(None, g)[0] for i, g in enumerate(given)})
        print(model.name)


if __name__ == "__main__":
    main()

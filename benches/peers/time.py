"""Times a model in one peer: `time.py PEER MODEL.onnx INPUTS.npz THREADS SECONDS`, one JSON object on stdout.

PEER is `onnxruntime`, `onnxruntime-cuda`, `onnxruntime-webgpu` or `openvino`. Each runs in the configuration that is best for it on
the machine: ONNX Runtime with all its optimisations, spinning threads when there are two or more; OpenVINO for latency, in its
default precision. On a GPU ONNX Runtime computes in `f32` what is `f32` (CUDA's products without TF32), and a run takes its inputs
from the CPU's memory and puts its outputs there, as hone's does; where it would quietly fall back to the CPU there is no figure.
After warming up for a tenth of the time, runs are timed one by one, at least 30. `rss_before_bytes` is what Python and the peer's
package have resident before they have seen the model, `peak_rss_bytes` the most from then on (Linux).

`time.py --gpu` says which peers this Python has for GPUs, and their versions.
"""
import json
import os
import sys
import time

import numpy as np


def status(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field + ":"))


def resident():
    """What is resident now; the peak counts from here, since that of an import may be above all that follows."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    return status("VmRSS")


# Peers that run on a GPU: ONNX Runtime's execution provider, and options of it.
GPU = {"onnxruntime-cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}), "onnxruntime-webgpu": ("WebGpuExecutionProvider", {})}


def on_gpu():
    try:
        import onnxruntime as rt
    except ImportError:
        return {}
    there = rt.get_available_providers()
    return {peer: rt.__version__ for peer, (provider, _) in GPU.items() if provider in there}


def onnxruntime(path, threads, provider="CPUExecutionProvider", given=None):
    import onnxruntime as rt

    before = resident()
    rt.set_default_logger_severity(3)
    options = rt.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = rt.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    session = rt.InferenceSession(path, options, providers=[(provider, given or {})])
    if session.get_providers()[0] != provider:
        sys.exit(f"{provider} does not start here: {session.get_providers()[0]} would run the model")
    return rt.__version__, before, lambda feed: session.run(None, feed)


def openvino(path, threads):
    import openvino as ov

    before = resident()
    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    request = compiled.create_infer_request()

    def run(feed):
        request.infer(feed, share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return ov.__version__, before, run


def main():
    peer, model, inputs, threads, seconds = sys.argv[1:]
    seconds = float(seconds)
    # Else a process on two cores has the threads of all libraries wait for each other.
    os.environ["OMP_NUM_THREADS"] = threads
    with np.load(inputs) as npz:
        feed = {k: npz[k] for k in npz.files}
    began = time.perf_counter()
    peers = {"onnxruntime": onnxruntime, "openvino": openvino}
    peers |= {name: lambda m, t, p=provider: onnxruntime(m, t, *p) for name, provider in GPU.items()}
    version, before, run = peers[peer](model, int(threads))
    load = time.perf_counter() - began
    warm = time.perf_counter()
    for n in range(10**6):
        run(feed)
        if n >= 3 and time.perf_counter() - warm > seconds / 10:
            break
    times = []
    began = time.perf_counter()
    while len(times) < 30 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run(feed)
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    rank = lambda q: times[min(len(times) - 1, int(q * len(times)))]
    out = {"peer": peer, "version": version, "p50_ms": rank(0.5), "p99_ms": rank(0.99), "runs": len(times),
           "load_ms": load * 1e3, "peak_rss_bytes": status("VmHWM"), "rss_before_bytes": before}
    print(json.dumps(out))


if sys.argv[1:] == ["--gpu"]:
    print(json.dumps(on_gpu()))
else:
    main()

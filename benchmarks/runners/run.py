"""Runs models in one runtime: started in an environment that has this runtime and NumPy, and nothing of ours.

    python run.py RUNTIME JOBS.json

JOBS is a list of {"model", "input", "output", "settings"}. The result, one row for each job, goes to standard
output as JSON: what went wrong, or the runtime's version and the shortest process CPU time of a run in ms.
Outputs are saved as .npy.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy reads it

import numpy as np

RUNS, SECONDS = 30, 3.0

Run = Callable[[], Any]
Settings = dict[str, Any]


def ort(path: str, x: Any, settings: Settings) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)[0]


def openvino(path: str, x: Any, settings: Settings) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1} | settings)
    return lambda: compiled([x])[compiled.output(0)]


def opencv(path: str, x: Any, settings: Settings) -> Run:
    import cv2

    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromONNX(path)

    def run() -> Any:
        net.setInput(x)
        return net.forward()

    return run


def tract(path: str, x: Any, settings: Settings) -> Run:
    import tract

    model = tract.onnx().load(path)
    model.set_input_fact(0, f"{','.join(map(str, x.shape))},f32")
    runnable = model.into_model().into_runnable()
    return lambda: runnable.run([x])[0].to_numpy()


def tvm(path: str, x: Any, settings: Settings) -> Run:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)
    name = model.graph.input[0].name
    module = from_onnx(model, shape_dict={name: x.shape}, keep_params_in_input=False)
    module = relax.transform.DecomposeOpsForInference()(module)
    module = relax.transform.LegalizeOps()(module)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    data = tvm.runtime.tensor(x)

    def run() -> Any:
        found = machine["main"](data)
        found = found if hasattr(found, "numpy") else found[0]
        return found.numpy()

    return run


def reference(path: str, x: Any, settings: Settings) -> Run:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(path)
    feed = {str(evaluator.input_names[0]): x}
    return lambda: next(iter(evaluator.run(None, feed)))


RUNTIMES = {
    "onnxruntime": ort,
    "openvino": openvino,
    "opencv-python-headless": opencv,
    "tract": tract,
    "apache-tvm": tvm,
    "onnx": reference,
}


def job(start: Callable[[str, Any, Settings], Run], one: dict[str, Any]) -> dict[str, Any]:
    x = np.load(one["input"])
    began = time.perf_counter()
    run = start(one["model"], x, one.get("settings", {}))
    load = time.perf_counter() - began
    np.save(one["output"], np.array(run()))
    times: list[float] = []
    stop = time.perf_counter() + SECONDS
    while len(times) < RUNS and time.perf_counter() < stop:
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return {"ms": 1000 * min(times), "load_s": load}


def main() -> None:
    name, jobs = sys.argv[1:]
    rows: list[dict[str, Any]] = []
    with open(jobs) as file:
        for one in json.load(file):
            try:
                row = job(RUNTIMES[name], one)
            except BaseException as error:  # a panic of a runtime in Rust is no Exception
                words = " ".join(f"{type(error).__name__}: {error}".split())
                row = {"error": words.replace(f"{os.path.dirname(one['model'])}/", "")[:300]}
            rows.append(row)
    print(json.dumps({"version": importlib.metadata.version(name), "rows": rows}))


if __name__ == "__main__":
    main()

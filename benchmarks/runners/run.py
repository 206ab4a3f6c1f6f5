"""Runs models in one runtime: started in an environment that has this runtime and NumPy, and nothing of ours.

    python run.py RUNTIME JOBS.json

JOBS is a list of {"model", "input", "output", "settings"}. The result, one row for each job, goes to standard
output as JSON: what went wrong, or the runtime's version and the shortest process CPU time of a run in ms.
Outputs are saved as .npy.
"""

import importlib.metadata
import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

RUNS, SECONDS = 30, 3.0


def ort(path, x, settings):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)[0]


def openvino(path, x, settings):
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1} | settings)
    return lambda: compiled([x])[compiled.output(0)]


def opencv(path, x, settings):
    import cv2

    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromONNX(path)

    def run():
        net.setInput(x)
        return net.forward()

    return run


def tract(path, x, settings):
    import tract

    model = tract.onnx().load(path)
    model.set_input_fact(0, f"{','.join(map(str, x.shape))},f32")
    runnable = model.into_model().into_runnable()
    return lambda: runnable.run([x])[0].to_numpy()


def tvm(path, x, settings):
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

    def run():
        found = machine["main"](data)
        found = found if hasattr(found, "numpy") else found[0]
        return found.numpy()

    return run


def mnn(path, x, settings):
    import subprocess

    import MNN.nn
    import MNN.numpy

    converted = path + ".mnn"
    tool = os.path.join(os.path.dirname(sys.executable), "mnnconvert")
    command = [tool, "-f", "ONNX", "--modelFile", path, "--MNNModel", converted, "--bizCode", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not os.path.exists(converted):
        raise RuntimeError((done.stdout + done.stderr).strip()[-200:])
    net = MNN.nn.load_module_from_file(converted, [], [])
    data = MNN.expr.convert(MNN.expr.const(x, list(x.shape), MNN.expr.NCHW), MNN.expr.NC4HW4)
    return lambda: MNN.expr.convert(net.forward(data), MNN.expr.NCHW).read()


def reference(path, x, settings):
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(path)
    return lambda: evaluator.run(None, {evaluator.input_names[0]: x})[0]


RUNTIMES = {
    "onnxruntime": ort,
    "openvino": openvino,
    "opencv-python-headless": opencv,
    "tract": tract,
    "apache-tvm": tvm,
    "MNN": mnn,
    "onnx": reference,
}


def job(start, one):
    x = np.load(one["input"])
    began = time.perf_counter()
    run = start(one["model"], x, one.get("settings", {}))
    load = time.perf_counter() - began
    np.save(one["output"], np.array(run()))
    times, stop = [], time.perf_counter() + SECONDS
    while len(times) < RUNS and time.perf_counter() < stop:
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return {"ms": 1000 * min(times), "load_s": load}


def main():
    name, jobs = sys.argv[1:]
    rows = []
    with open(jobs) as file:
        for one in json.load(file):
            try:
                row = job(RUNTIMES[name], one)
            except BaseException as error:
                row = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            rows.append(row)
    print(json.dumps({"version": importlib.metadata.version(name), "rows": rows}))


if __name__ == "__main__":
    main()

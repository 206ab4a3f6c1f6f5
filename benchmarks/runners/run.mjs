// Runs models in onnxruntime-web (WebAssembly) under node, as run.py does in Python.
//
//     node run.mjs JOBS.json     in a folder whose node_modules has onnxruntime-web
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import process from "node:process";

const RUNS = 30, SECONDS = 3;
const here = createRequire(pathToFileURL(process.cwd() + "/"));
const ort = here("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

function readNpy(path) {
  const bytes = readFileSync(path);
  const length = bytes.readUInt16LE(8);
  const header = bytes.subarray(10, 10 + length).toString();
  const dims = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((text) => text.trim()).map(Number);
  const data = new Float32Array(bytes.buffer.slice(bytes.byteOffset + 10 + length));
  return new ort.Tensor("float32", data, dims);
}

function writeNpy(path, tensor) {
  const dims = tensor.dims.join(", ") + (tensor.dims.length === 1 ? "," : "");
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims}), }`;
  header = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const head = Buffer.alloc(10);
  head.write("\x93NUMPY\x01\x00", "latin1");
  head.writeUInt16LE(header.length, 8);
  const data = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  writeFileSync(path, Buffer.concat([head, Buffer.from(header, "latin1"), data]));
}

async function job(one) {
  const began = performance.now();
  const session = await ort.InferenceSession.create(readFileSync(one.model), { executionProviders: ["wasm"] });
  const load = (performance.now() - began) / 1000;
  const feeds = { [session.inputNames[0]]: readNpy(one.input) };
  writeNpy(one.output, (await session.run(feeds))[session.outputNames[0]]);
  const times = [], stop = performance.now() + 1000 * SECONDS;
  while (times.length < RUNS && performance.now() < stop) {
    const before = process.cpuUsage();
    await session.run(feeds);
    const used = process.cpuUsage(before);
    times.push((used.user + used.system) / 1000);
  }
  return { ms: Math.min(...times), load_s: load };
}

const rows = [];
for (const one of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  try {
    rows.push(await job(one));
  } catch (error) {
    rows.push({ error: String(error.message ?? error).slice(0, 300) });
  }
}
const version = JSON.parse(readFileSync("node_modules/onnxruntime-web/package.json", "utf8")).version;
console.log(JSON.stringify({ version, rows }));
process.exit(0);

// The page: a drawing goes through every network, and the table says what each file takes and costs.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { counts, pixels } from "./digit.js";

const WARM_UP = 20; // rounds, until the browser has optimised what runs often
const ROUNDS = 60;
const RUNS = 5; // in a round: one run takes little longer than the clock's step of 0.1 ms

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const paint = page.canvas.getContext("2d");
const colour = (element) => getComputedStyle(element).color;

let strokes = [];
let sample = null; // { image, label }: a test image, where nothing is drawn
let networks = []; // { name, bits, activations, bytes, session, row }
let tests = null; // { images: counts, labels }

// ----------------------------------------------------------------------------------------------- networks

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** Logits of one or more images of 8 x 8. */
async function run(session, images) {
  const input = new ort.Tensor("float32", images, [images.length / 64, 1, 8, 8]);
  const outputs = await session.run({ [session.inputNames[0]]: input });
  return outputs[session.outputNames[0]].data;
}

/** The digit with the largest of ten logits, and its share of the softmax. */
function best(logits) {
  const largest = Math.max(...logits);
  const sum = logits.reduce((total, value) => total + Math.exp(value - largest), 0);
  return { digit: logits.indexOf(largest), share: 1 / sum };
}

async function open() {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const { models, versions } = await (await fetched("models.json")).json();
  const bytes = new Uint8Array(await (await fetched("digits.bin")).arrayBuffer());
  const number = bytes.length / 65;
  tests = { images: bytes.subarray(0, 64 * number), labels: bytes.subarray(64 * number) };
  for (const model of models) {
    const file = new Uint8Array(await (await fetched(model.file)).arrayBuffer());
    const session = await ort.InferenceSession.create(file);
    networks.push({ ...model, bytes: file.length, session, row: null });
  }
  for (const network of networks) network.row = row(network);
  page.commands.append(...models.filter(({ command }) => command).map(({ command }) => element("code", command)));
  page.versions.textContent = `onnx_dfmpc ${versions.onnx_dfmpc}, onnxruntime-web ${versions["onnxruntime-web"]}`;
}

// -------------------------------------------------------------------------------------------------- table

function element(name, text, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

function cell(row, name) {
  const made = row.insertCell();
  made.className = name;
  return (value, note) => made.replaceChildren(element("b", value), element("small", note));
}

function bar(share) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 5");
  svg.setAttribute("preserveAspectRatio", "none");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rect.setAttribute("width", String(100 * share));
  rect.setAttribute("height", "5");
  svg.append(rect);
  return svg;
}

function row(network) {
  const made = page.models.insertRow();
  made.dataset.model = network.name;
  if (!network.bits) made.className = "float";
  const head = element("th", network.bits ? `${network.bits} bits` : "float", { scope: "row" });
  head.append(element("small", network.bits ? (network.activations ? "8-bit activations" : "float activations") : "as trained"));
  made.append(head);
  const cells = Object.fromEntries(["reads", "file", "latency", "tested"].map((name) => [name, cell(made, name)]));
  const times = networks[0].bytes / network.bytes;
  cells.file(`${(network.bytes / 1000).toFixed(0)} kB`, network.bits ? `${times.toFixed(1)}× smaller` : "");
  made.querySelector(".file").append(bar(1 / times));
  cells.latency("…", "");
  cells.tested("…", "");
  cells.reads("–", "");
  return Object.assign(cells, { element: made });
}

/** Give the page time to draw. */
const breath = () => new Promise((done) => setTimeout(done));

/** A quarter of the values are smaller: what else the machine does lies above it. */
const quartile = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 4)];

/** The numbers from 0, in any order. */
const shuffled = (number) =>
  [...Array(number).keys()].map((i) => [Math.random(), i]).sort(([a], [b]) => a - b).map(([, i]) => i);

/** Latency of one image, all networks in turn, so that whatever slows the machine slows them all alike. */
async function measure() {
  page.again.disabled = true;
  const image = pixels(tests.images.subarray(0, 64));
  const times = networks.map(() => []);
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    for (const i of shuffled(networks.length)) {
      const { session } = networks[i];
      const started = performance.now();
      for (let n = 0; n < RUNS; n++) await run(session, image);
      if (round >= 0) times[i].push((performance.now() - started) / RUNS);
    }
    await breath();
  }
  const usual = quartile(times[0]);
  for (const [i, { row, bits }] of networks.entries()) {
    const time = quartile(times[i]);
    row.latency(`${time.toFixed(2)} ms`, bits ? `${(time / usual).toFixed(2)} of float` : "");
  }
  page.measured.textContent = `Latency: one image, one thread (WebAssembly), lower quartile of ${ROUNDS} × ${RUNS} runs in this browser just now. Test images: the ${tests.labels.length} that training has not seen, read in this browser.`;
  page.again.disabled = false;
}

async function test() {
  const images = pixels(tests.images);
  for (const { session, row } of networks) {
    const logits = await run(session, images);
    const right = tests.labels.reduce((sum, label, i) => sum + (best(logits.slice(10 * i, 10 * i + 10)).digit === label), 0);
    row.tested(`${((100 * right) / tests.labels.length).toFixed(1)}\u00a0%`, `${right} right`);
    row.element.dataset.right = right;
    await breath();
  }
}

// ------------------------------------------------------------------------------------------------ reading

/** The image as it goes into the networks, darker for more ink. */
function show(found) {
  const context = page.seen.getContext("2d");
  context.clearRect(0, 0, 8, 8);
  context.fillStyle = colour(page.seen);
  found?.forEach((count, i) => {
    context.globalAlpha = count / 16;
    context.fillRect(i % 8, Math.floor(i / 8), 1, 1);
  });
}

function none() {
  page.answer.textContent = "–";
  page.agreement.textContent = "nothing drawn yet";
  for (const { row } of networks) {
    row.reads("–", "");
    row.element.querySelector(".reads").classList.remove("other");
    delete row.element.dataset.reads;
  }
}

async function read() {
  const found = sample?.image ?? counts(strokes);
  show(found);
  if (!found || !networks.length) return none();
  const answers = [];
  for (const { session } of networks) answers.push(best(await run(session, pixels(found))));
  const [float, ...small] = answers;
  for (const [i, { row }] of networks.entries()) {
    const { digit, share } = answers[i];
    row.reads(String(digit), `${(100 * share).toFixed(0)}\u00a0%`);
    row.element.querySelector(".reads").classList.toggle("other", digit !== float.digit);
    row.element.dataset.reads = digit;
  }
  const least = networks.reduce((a, b) => (b.bytes < a.bytes ? b : a));
  const agree = small.filter(({ digit }) => digit === float.digit).length;
  page.answer.textContent = answers[networks.indexOf(least)].digit;
  const what = sample ? `a test image of a ${sample.label}, read ` : "";
  page.agreement.textContent = `${what}by the smallest file, ${(least.bytes / 1000).toFixed(0)} kB; ${agree} of ${small.length} small ones read what float reads`;
}

let wanted = false;
let reading = null;

/** Read what is there now; while a reading runs, remember that another one is due. */
function update() {
  wanted = true;
  document.documentElement.dataset.reading = "";
  reading ??= (async () => {
    while (wanted) {
      wanted = false;
      await read();
      await breath();
    }
    reading = null;
    delete document.documentElement.dataset.reading;
  })().catch(fail);
}

// ------------------------------------------------------------------------------------------------ drawing

function draw() {
  const { width, height } = page.canvas;
  paint.clearRect(0, 0, width, height);
  paint.fillStyle = paint.strokeStyle = colour(page.canvas);
  paint.globalAlpha = 1;
  paint.lineWidth = width / 14;
  paint.lineCap = paint.lineJoin = "round";
  for (const stroke of strokes) {
    paint.beginPath();
    for (const [x, y] of stroke) paint.lineTo(x * width, y * height);
    if (stroke.length === 1) paint.lineTo(stroke[0][0] * width, stroke[0][1] * height);
    paint.stroke();
  }
  if (sample)
    sample.image.forEach((count, i) => {
      paint.globalAlpha = count / 16;
      paint.fillRect(((i % 8) * width) / 8, (Math.floor(i / 8) * height) / 8, width / 8, height / 8);
    });
  page.hint.hidden = strokes.length > 0 || sample !== null;
}

function change(next) {
  ({ strokes, sample } = { strokes: [], sample: null, ...next });
  draw();
  update();
}

const NEAR = 1 / 100; // points that are closer than this share of the canvas add nothing but work

function add(event) {
  const box = page.canvas.getBoundingClientRect();
  const stroke = strokes[strokes.length - 1];
  for (const { clientX, clientY } of event.getCoalescedEvents?.().concat(event) ?? [event]) {
    const point = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
    const last = stroke[stroke.length - 1];
    if (!last || Math.hypot(point[0] - last[0], point[1] - last[1]) > NEAR) stroke.push(point);
  }
  change({ strokes });
}

let pointer = null; // the finger that draws: a second one changes nothing

page.canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  event.preventDefault();
  pointer = event.pointerId;
  page.canvas.setPointerCapture(pointer);
  strokes.push([]);
  sample = null;
  add(event);
});
page.canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId === pointer) add(event);
});
for (const end of ["pointerup", "pointercancel"])
  page.canvas.addEventListener(end, (event) => {
    if (event.pointerId === pointer) pointer = null;
  });
page.clear.addEventListener("click", () => change({}));
page.sample.addEventListener("click", () => {
  const i = Math.floor(Math.random() * tests.labels.length);
  change({ sample: { image: tests.images.subarray(64 * i, 64 * i + 64), label: tests.labels[i] } });
});
page.again.addEventListener("click", () => measure().catch(fail));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => change({ strokes, sample }));

// -------------------------------------------------------------------------------------------------- start

function fail(error) {
  page.status.className = "bad";
  page.status.textContent = `This did not work: ${error.message ?? error}`;
  document.documentElement.dataset.failed = "";
}

page.status.textContent = "Loading ONNX Runtime and the networks…";
draw();
try {
  await open();
  page.status.textContent = "";
  page.sample.disabled = false;
  update();
  await test();
  await measure();
  document.documentElement.dataset.ready = "";
} catch (error) {
  fail(error);
}

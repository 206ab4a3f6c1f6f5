const drawn = JSON.parse(document.getElementById("drawn").textContent);

const charts = [...document.querySelectorAll("[data-chart]")].map(async (place) => {
  const spec = drawn.specs[Number(place.dataset.chart)];
  // Expressions are interpreted, not compiled: the page allows no eval.
  const options = {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config: drawn.config, tooltip: { disableDefaultStyle: true },
  };
  place.replaceChildren();
  await window.vegaEmbed(place, spec, options);
});
Promise.all(charts).then(() => document.documentElement.setAttribute("data-ready", ""));

const order = new Intl.Collator(undefined, { numeric: true });

function compare(first, second) {
  const [a, b] = [first.dataset.value, second.dataset.value];
  return a !== undefined && b !== undefined ? Number(a) - Number(b) : order.compare(first.textContent, second.textContent);
}

function sort(table, column, head) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const filled = rows.filter((row) => row.cells[column].textContent.trim());
  const empty = rows.filter((row) => !row.cells[column].textContent.trim());
  filled.sort((first, second) => (up ? 1 : -1) * compare(first.cells[column], second.cells[column]));
  table.tBodies[0].append(...filled, ...empty);
}

for (const table of document.querySelectorAll(".long table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(table, column, head)));
}

for (const field of document.querySelectorAll("input[type=search]")) {
  const block = field.closest(".long");
  const rows = [...block.querySelectorAll("tbody tr")];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    block.querySelector("output").textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  });
}

async function copy(text, block) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(block);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy") ? "Copied" : "Selected";
  }
}

for (const button of document.querySelectorAll(".copy")) {
  const block = button.parentElement.querySelector("pre");
  button.addEventListener("click", async () => {
    button.textContent = await copy(block.textContent, block);
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

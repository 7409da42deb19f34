import DataTable from "datatables";

const charts = JSON.parse(document.getElementById("charts").textContent);
const lines = document.getElementById("lines");
const boxes = [...lines.querySelectorAll("input")];
const views = [];
const hidden = () => boxes.filter((box) => !box.checked).map((box) => box.value);
const show = (view) => view.signal("hidden", hidden()).runAsync();

lines.hidden = false;
lines.querySelector("details").open = matchMedia("(min-width: 60rem)").matches;
lines.addEventListener("change", () => views.forEach(show));
for (const button of lines.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    boxes.forEach((box) => (box.checked = Boolean(button.dataset.all)));
    views.forEach(show);
  });
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
    document.getElementById("status").textContent = "Copied";
  });
}

function sortable(table) {
  const sorted = new DataTable(table, {
    paging: false,
    info: false,
    autoWidth: false,
    order: [],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    language: { zeroRecords: "No line matches." },
  });
  const filter = document.querySelector(`[data-filters="${table.id}"]`);
  if (filter) {
    filter.parentElement.hidden = false;
    filter.addEventListener("input", () => sorted.search(filter.value).draw());
  }
}

async function draw(place) {
  // Errors are logged, and not that a chart is empty once all its lines are hidden.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, tooltip: { theme: "custom" }, logLevel: 1 };
  const { view } = await vegaEmbed(place, charts[place.dataset.chart], options);
  views.push(view);
  await show(view);
}

// One after the other, and pauses between them: the first ones are there at once, and the page can be used meanwhile.
const pause = () => new Promise((resolve) => setTimeout(resolve));
(async () => {
  for (const one of document.querySelectorAll("[data-chart], table.sorted")) {
    await (one.dataset.chart ? draw(one) : sortable(one));
    await pause();
  }
  document.documentElement.dataset.ready = "";
})();

"use strict";
// Draws everything once, then what each change touches.

const changes = (change, ...keys) => keys.some((key) => key in change);
const viewChanges = (change) => changes(change, "circuit", "best", "share", "show", "kinds");

listeners.push((change) => {
  byId("tip").hidden = true;
  if (viewChanges(change)) {
    drawGraph();
    drawHead();
    drawTable();
  }
  if (changes(change, "best", "share", "circuit")) { drawPrompts(); drawRecord(); }
  if (changes(change, "circuit")) drawCharts();
  if (changes(change, "node", "edge", "query")) mark();
  if (changes(change, "edge")) drawTable();
  if (viewChanges(change) || changes(change, "node", "edge", "prompt")) drawPanel();
});

byId("search").addEventListener("input", (event) => update({ query: event.target.value, node: null, edge: null }));
byId("search").addEventListener("keydown", (event) => {
  const query = nameOf(event.target.value);
  if (event.key === "Enter" && placed.has(query)) update({ node: query, edge: null });
  if (event.key === "Escape") { event.target.value = ""; update({ query: "" }); }
});
byId("filter").addEventListener("input", drawTable);
byId("copy").addEventListener("click", copyTable);

const theme = {
  dark: () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark",
  say: () => { byId("theme").textContent = theme.dark() ? "☀ Light" : "☾ Dark"; },
};
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme.dark() ? "light" : "dark";
  theme.say();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme.say);
theme.say();

if (!hasHeads) byId("search").placeholder = `Search: ${graph.senders[0]}`;
drawHead();
drawControls();
drawLegend();
drawTable();
drawJudged();
drawPrompts();
drawRecord();

// What depends on widths is drawn when they are known, and again when they change.
let width = 0;
new ResizeObserver(() => {
  if (canvas.clientWidth === width || canvas.clientWidth === 0) return;
  width = canvas.clientWidth;
  drawGraph();
  drawSpreads();
  drawCharts();
  drawPanel();
  performance.mark("drawn");
}).observe(canvas);

"use strict";
// The circuit by layer and head, or unit: the input below, the logits on top, only measured edges between.

const PORT = { q: -1, k: 0, v: 1 };
const canvas = byId("graph");
let placed = new Map(); // node -> {x, y, w, h}

function layOut(width) {
  const layers = graph.rows.length;
  const widest = Math.max(...graph.rows.map((row) => row.length));
  const columns = widest + Math.max(...graph.beside.map((names) => names.length));
  const gutter = width < 500 ? 20 : 40;
  const cell = Math.min((width - gutter) / columns, 104);
  const left = gutter + (width - gutter - cell * columns) / 2;
  const row = layers <= 4 ? 96 : layers <= 8 ? 76 : 62;
  const h = cell >= 40 ? Math.min(cell * 0.44, 25) : Math.min(cell * 0.62, 18);
  const w = cell >= 40 ? Math.min(cell * 0.84, 64) : h;
  const top = 56;
  const places = new Map();
  const y = (layer) => top + row * (layers - layer) + row * 0.1;
  const wide = (label) => (cell >= 40 && label.length > 5 ? Math.min(cell * 0.94, 14 + 7 * label.length) : w);
  const put = (name, x, y) => {
    const { span } = graph.nodes[name];
    const label = isHead(name) ? `${headName(graph.nodes[name])}${span && `@${span}`}` : name;
    places.set(name, { x, y, w: wide(label), h, label });
  };
  graph.rows.forEach((names, layer) => {
    names.forEach((name, i) => put(name, left + cell * (i + 0.5 + (widest - names.length) / 2), y(layer)));
    graph.beside[layer].forEach((name, i) => put(name, left + cell * (widest + i + 0.5), y(layer) - row * 0.42));
  });
  const middle = left + (cell * widest) / 2;
  const bottom = y(0) + row * 0.9;
  places.set("logits", { x: middle, y: 40, w: 72, h: 26, label: "logits" });
  graph.embeddings.forEach((name, i, all) =>
    places.set(name, { x: middle + 84 * (i - (all.length - 1) / 2), y: bottom, w: 72, h: 26, label: name }));
  return { places, cell, left, width, height: bottom + 30, y };
}

function curve(edge, node, cell) {
  const from = placed.get(edge.sender);
  const to = placed.get(node);
  const x1 = from.x;
  const y1 = from.y - from.h / 2;
  const x2 = to.x + ((PORT[edge.kind] ?? 0) * to.w) / 3;
  const y2 = to.y + to.h / 2;
  const reach = Math.max(18, Math.abs(y1 - y2) * 0.45);
  const isColumn = Math.abs(from.x - to.x) < cell * 0.4 && y1 - y2 > 70; // a straight line would cross nodes between
  const bow = isColumn ? cell * 0.55 * (PORT[edge.kind] || 1) : 0;
  return `M${x1} ${y1}C${x1 + bow} ${y1 - reach} ${x2 + bow} ${y2 + reach} ${x2} ${y2}`;
}

const strength = (edge) => (view.most ? Math.sqrt(Math.abs(edge.value) / view.most) : 0.5);

function drawEdge(edge, cell) {
  const path = edge.nodes.map((node) => curve(edge, node, cell)).join("");
  const width = (0.8 + 4.7 * strength(edge)).toFixed(2);
  const opacity = (edge.share === null ? 0.28 + 0.67 * strength(edge) : 0.08 + 0.87 * edge.share).toFixed(2);
  return svg("g", { class: `edge ${edge.kind}${edge.value < 0 ? " negative" : ""}`, "data-edge": edge.id },
    svg("path", { class: "hit", d: path }),
    svg("path", { class: "line", d: path, "stroke-width": width, "stroke-opacity": opacity }));
}

function drawNode(name, place) {
  if (!view.nodes.has(name)) {
    return svg("g", { class: "node absent", "data-node": name }, svg("circle", { cx: place.x, cy: place.y, r: 2.5 }));
  }
  const box = { x: place.x - place.w / 2, y: place.y - place.h / 2, width: place.w, height: place.h };
  const roomy = place.w > 30;
  return svg("g", {
    class: "node", "data-node": name, role: "button", tabindex: -1,
    "aria-label": `${name}, ${describeNode(name)}: ${degrees(name)}`,
  },
  svg("rect", { ...box, rx: graph.nodes[name]?.kind === "mlp" ? 4 : place.h / 2 }),
  roomy ? svg("text", { x: place.x, y: place.y, dy: "0.35em", class: place.w < 46 ? "small" : null }, place.label) : null);
}

function drawAxes(layout) {
  const labels = [];
  for (let layer = 0; layer < graph.rows.length; layer += 1) {
    const text = layout.width < 500 ? `${layer}` : `L${layer}`;
    labels.push(svg("text", { class: "axis", x: 2, y: layout.y(layer), dy: "0.35em" }, text));
    labels.push(svg("line", { class: "row", x1: layout.left, x2: layout.width, y1: layout.y(layer), y2: layout.y(layer) }));
  }
  const topLine = 14;
  columnTitles(layout).forEach(([x, text], i, all) => {
    if (text && text !== all[i - 1]?.[1]) labels.push(svg("text", { class: "axis column", x, y: topLine }, text));
  });
  return svg("g", { "aria-hidden": "true" }, labels);
}

// From left to right the middle of each column, and what stands in it: "" where layers differ or names say enough.
function columnTitles(layout) {
  const title = (name) => {
    const { kind, index } = graph.nodes[name];
    if (kind === "head") return `${layout.cell >= 44 ? "head " : ""}${index}`;
    return { attention: "attention", mlp: "MLP", neurons: "MLP" }[kind] ?? "";
  };
  const titles = new Map();
  for (const name of [...graph.rows, ...graph.beside].flat()) {
    const { x } = layout.places.get(name);
    titles.set(x, (titles.get(x) ?? title(name)) === title(name) ? title(name) : "");
  }
  return [...titles].sort(([a], [b]) => a - b);
}

function drawGraph() {
  const hadFocus = document.activeElement?.dataset?.node;
  const layout = layOut(canvas.clientWidth);
  placed = layout.places;
  const byStrength = [...view.drawn].sort((a, b) => Math.abs(a.value) - Math.abs(b.value));
  const picture = svg("svg", {
    width: layout.width, height: layout.height, role: "group",
    "aria-label": `${counted(view.drawn.length, "edge")} between ${counted(view.nodes.size, "node")}; arrow keys move between nodes`,
  },
  drawAxes(layout),
  svg("g", {}, byStrength.map((edge) => drawEdge(edge, layout.cell))),
  svg("g", {}, [...placed].map(([name, place]) => drawNode(name, place))));
  canvas.replaceChildren(picture);
  if (!view.drawn.length) canvas.append(el("p", { class: "empty over" }, emptyReason()));
  const start = picture.querySelector("[data-node=logits][tabindex]") ?? picture.querySelector("[tabindex]");
  start?.setAttribute("tabindex", 0);
  if (hadFocus) nodeElement(hadFocus)?.focus();
  mark();
}

function emptyReason() {
  if (view.shown.length) return "All kinds of edges are switched off.";
  const searched = view.circuit.run.decisions ? ": removing each cost less than the threshold" : "";
  return `No edge is left in this circuit${searched}.`;
}

const nodeElement = (name) => canvas.querySelector(`[data-node="${CSS.escape(name)}"]`);

// Which nodes and edges stand out: the selection and its edges, or what the search finds.
function inFocus() {
  if (view.shown.some((edge) => edge.id === state.edge)) return (edge) => edge.id === state.edge;
  if (state.node !== null) return (edge) => edge.sender === state.node || edge.nodes.includes(state.node);
  const query = nameOf(state.query);
  if (query) return (edge) => matches(edge, query);
  return null;
}
// What is typed as names are spelt: "9.6" is how the picture labels a9.h6.
const nameOf = (text) => {
  const typed = text.trim().toLowerCase().replace("→", "->").replace(/\s+/g, "");
  return Object.values(graph.nodes).find((node) => node.kind === "head" && headName(node) === typed)?.node ?? typed;
};
const matches = (edge, query) =>
  query.includes("->") ? edge.name.includes(query) : [edge.sender, ...edge.nodes, edge.receiver].includes(query) || edge.name.includes(query);

function mark() {
  const focus = inFocus();
  const near = new Set(state.node === null ? [] : [state.node]);
  const found = new Set();
  for (const edge of view.shown) {
    if (!focus?.(edge)) continue;
    found.add(edge.id);
    [edge.sender, ...edge.nodes].forEach((node) => near.add(node));
  }
  canvas.classList.toggle("focused", focus !== null);
  for (const group of canvas.querySelectorAll(".edge")) group.classList.toggle("near", found.has(Number(group.dataset.edge)));
  for (const group of canvas.querySelectorAll(".node")) {
    group.classList.toggle("near", near.has(group.dataset.node));
    group.classList.toggle("selected", group.dataset.node === state.node);
    if (group.hasAttribute("role")) group.setAttribute("aria-pressed", group.dataset.node === state.node);
  }
  byId("found").textContent = status(found.size);
}

// What is chosen, in words: for screen readers, and where the panel is out of sight.
function status(found) {
  if (view.shown.some((edge) => edge.id === state.edge)) return `Chosen: ${arrow(edges[state.edge])}`;
  if (state.node !== null) return `Chosen: ${state.node}, ${describeNode(state.node)}; ${degrees(state.node)}`;
  const query = state.query.trim();
  return query && `${counted(found, "edge")} of ${count(view.shown.length)} match “${query}”`;
}

function degrees(name) {
  const into = view.shown.filter((edge) => edge.nodes.includes(name)).length;
  const out = view.shown.filter((edge) => edge.sender === name).length;
  return into + out ? `${counted(into, "edge")} in, ${count(out)} out` : "no edge of this circuit";
}

// --- pointer and keys -------------------------------------------------------------------------

canvas.addEventListener("click", (event) => {
  const node = event.target.closest("[data-node]")?.dataset.node;
  const edge = event.target.closest("[data-edge]")?.dataset.edge;
  if (node !== undefined) update({ node: node === state.node ? null : node, edge: null });
  else if (edge !== undefined) update({ edge: Number(edge), node: null });
  else update({ node: null, edge: null });
});
canvas.addEventListener("pointermove", (event) => showTip(event.target, event.clientX, event.clientY));
canvas.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
canvas.addEventListener("keydown", (event) => {
  const name = event.target.dataset?.node;
  if (name === undefined) return;
  const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (event.key === "Enter" || event.key === " ") update({ node: name === state.node ? null : name, edge: null });
  else if (event.key === "Escape") update({ node: null, edge: null });
  else if (step) moveFocus(name, step);
  else return;
  event.preventDefault();
});

// To the nearest node in a direction; what lies aside counts double.
function moveFocus(name, [dx, dy]) {
  const from = placed.get(name);
  let best = null;
  for (const other of view.nodes) {
    const to = placed.get(other);
    const along = (to.x - from.x) * dx + (to.y - from.y) * dy;
    const aside = Math.abs((to.x - from.x) * dy) + Math.abs((to.y - from.y) * dx);
    if (along > 1 && (best === null || along + 2 * aside < best.cost)) best = { other, cost: along + 2 * aside };
  }
  if (best === null) return;
  nodeElement(name).setAttribute("tabindex", -1);
  nodeElement(best.other).setAttribute("tabindex", 0);
  nodeElement(best.other).focus();
}

function showTip(target, x, y) {
  const tip = byId("tip");
  const group = target.closest("[data-edge], [data-node]");
  tip.hidden = group === null;
  if (group === null) return;
  tip.replaceChildren(...(group.dataset.node === undefined ? edgeTip(Number(group.dataset.edge)) : nodeTip(group.dataset.node)));
  tip.style.left = `${Math.max(8, Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > window.innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
}

function edgeTip(id) {
  const edge = view.shown.find((one) => one.id === id);
  const lines = [el("b", {}, arrow(edge)), el("span", {}, `score ${signed(edge.score)}`)];
  if (edge.effects) lines.push(el("span", {}, `without it ${signed(edge.effect)} (${spread(edge.effects)} over ${counted(edge.effects.length, "prompt")})`));
  return lines;
}

function nodeTip(name) {
  return [el("b", {}, name), el("span", {}, describeNode(name)), el("span", {}, degrees(name))];
}

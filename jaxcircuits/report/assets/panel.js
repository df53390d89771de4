"use strict";
// The side panel: the strongest edges, a node with its edges and attention, or one edge prompt by prompt.

const LISTED = 8;

const bar = (value, most) => {
  const share = most ? Math.abs(value) / most : 0;
  return el("span", { class: `bar${value < 0 ? " negative" : ""}`, "aria-hidden": "true" },
    el("i", { style: `width:${(100 * Math.min(1, share)).toFixed(1)}%` }));
};

const edgeRow = (edge, label) => el("li", {},
  el("button", { type: "button", class: "row", onclick: () => update({ edge: edge.id, node: null }) },
    el("span", { class: "name" }, label), bar(edge.value, view.most), el("span", { class: "value" }, signed(edge.value))));

const strongest = (list) => [...list].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));

function edgeList(list, label) {
  const sorted = strongest(list);
  const shown = el("ul", { class: "rows" }, sorted.slice(0, LISTED).map((edge) => edgeRow(edge, label(edge))));
  if (sorted.length <= LISTED) return [shown];
  const rest = el("ul", { class: "rows" });
  const more = el("details", { ontoggle: () => {
    if (!rest.children.length) rest.append(...sorted.slice(LISTED).map((edge) => edgeRow(edge, label(edge))));
  } }, el("summary", {}, `${count(sorted.length - LISTED)} more`), rest);
  return [shown, more];
}

function drawPanel() {
  const panel = byId("panel");
  const edge = view.shown.find((one) => one.id === state.edge);
  if (edge) panel.replaceChildren(...edgeDetails(edge));
  else if (state.node !== null) panel.replaceChildren(...nodeDetails(state.node));
  else panel.replaceChildren(...overview());
}

const heading = (text, below) => el("div", { class: "panel-head" },
  el("div", {}, el("h2", {}, text), below ? el("p", { class: "hint" }, below) : null),
  el("button", { type: "button", class: "quiet", "aria-label": "Clear the selection", onclick: () => update({ node: null, edge: null }) }, "✕"));

function overview() {
  if (!view.shown.length) return [el("h2", {}, "Strongest edges"), el("p", { class: "empty" }, "There is no edge in view.")];
  return [
    el("h2", {}, "Strongest edges"),
    el("p", { class: "hint" }, "Choose a node or an edge in the picture to see what it does."),
    ...edgeList(view.shown, arrow),
    el("h3", {}, "How to read this"),
    el("ul", { class: "notes" },
      el("li", {}, `Everything flows upward: a node reads what nodes below it wrote.${hasHeads ? ` 1.6 is head 6 of layer 1 (a1.h6)${has("mlp") ? ", m1 the MLP of layer 1" : ""}.` : ""}`),
      el("li", {}, `A line is an edge: what one node writes, as another reads it${graph.kinds.includes("q") ? " through its query (q), key (k) or value (v)" : ""}.`),
      el("li", {}, "Blue and thick: without it the loss rises much. Orange: without it the loss falls.")),
  ];
}

function nodeDetails(name) {
  const into = view.shown.filter((edge) => edge.nodes.includes(name));
  const out = view.shown.filter((edge) => edge.sender === name);
  const parts = [heading(name, describeNode(name))];
  if (!into.length && !out.length) parts.push(el("p", { class: "empty" }, "No edge of this circuit touches this node."));
  const titles = { q: "Its query reads", k: "Its key reads", v: "Its value reads" };
  for (const kind of new Set(graph.kinds)) {
    const list = into.filter((edge) => edge.kind === kind);
    if (list.length) parts.push(el("h3", {}, titles[kind] ?? "Reads"), ...edgeList(list, (edge) => edge.sender));
  }
  if (out.length) parts.push(el("h3", {}, "Is read by"), ...edgeList(out, (edge) => edge.receiver));
  if (isHead(name)) parts.push(el("h3", {}, "Attention pattern"), ...attention(name));
  return parts;
}

function edgeDetails(edge) {
  const part = { q: "query", k: "key", v: "value" }[edge.kind] ?? "input";
  const to = (node) => el("button", { type: "button", class: "chip", onclick: () => update({ node, edge: null }) }, node);
  const parts = [
    heading(arrow(edge), `What ${edge.sender} writes, as the ${part} of ${edge.nodes.join(", ")} reads it`),
    el("p", { class: "pair" }, to(edge.sender), "→", edge.nodes.map(to)),
    el("dl", { class: "pairs" }, el("dt", {}, "Score"), el("dd", {}, signed(edge.score)),
      edge.share === null ? null : [el("dt", {}, "Kept in replicates"), el("dd", {}, `${percent(edge.share)} (${edge.interval.map(percent).join(" to ")})`)],
      edge.effects ? [el("dt", {}, "Loss without it"), el("dd", {}, `${signed(edge.effect)} ± ${number(deviation(edge.effects))}`)] : null),
  ];
  if (!edge.effects) return [...parts, el("p", { class: "empty" }, "This report has no effects on single prompts for this edge.")];
  const most = Math.max(...edge.effects.map(Math.abs));
  const rows = edge.effects.map((effect, i) => el("li", {}, el("div", { class: "row" },
    el("span", { class: "name" }, `${i + 1} ${prompts[i].answers.join(" ").trim() || "prompt"}`), bar(effect, most),
    el("span", { class: "value" }, signed(effect)))));
  return [...parts, el("h3", {}, "Loss without it, prompt by prompt"), el("ul", { class: "rows" }, rows)];
}

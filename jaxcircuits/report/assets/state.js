"use strict";
// What the page is about, what is chosen in it, and the two builders of elements. Text is only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const { graph, circuits, prompts } = data;
const isHead = (name) => graph.nodes[name]?.kind === "head";
const has = (kind) => Object.values(graph.nodes).some((node) => node.kind === kind);
const hasHeads = has("head");
const MOST_DRAWN = 1000; // edges; more of them are a felt, not a picture

const edges = data.edges.sender.map((sender, id) => {
  const column = data.edges.receiver[id];
  const receiver = graph.receivers[column];
  const from = graph.senders[sender];
  const nodes = graph.owners[column]; // several where heads share a key or value
  return { id, sender: from, receiver, nodes, kind: graph.kinds[column], name: `${from}->${receiver}` };
});

// --- what is chosen ---------------------------------------------------------------------------

const isScores = data.ranking !== null && circuits[0].kept.length === graph.numEdges;
const state = {
  circuit: 0, // which of a sweep's
  best: null, // how many of the best edges, or null: the circuit as it is
  share: null, // of the replicates that keep an edge, at least; or null: the circuit as it is
  show: "score", // what width and colour stand for: "score" or "effect"
  kinds: new Set(graph.kinds),
  node: null,
  edge: null,
  prompt: 0,
  query: "",
};
const isCircuit = () => state.best === null && state.share === null; // what is in view, or a choice of edges
const listeners = [];
const update = (change) => {
  Object.assign(state, change);
  if (Object.keys(change).some((key) => ["circuit", "best", "share", "show", "kinds"].includes(key))) view = currentView();
  for (const listener of listeners) listener(change);
};

const ranked = data.ranking === null ? [] : (() => {
  const size = data.ranking === "absolute" ? Math.abs : (score) => score;
  const { scores } = circuits[0];
  return edges.map((edge) => edge.id).sort((a, b) => size(scores[b]) - size(scores[a]) || a - b);
})();

// The edges in view, each with its score and, where the record has them, its effects on single prompts.
function currentView() {
  const circuit = circuits[state.circuit];
  const place = new Map(circuit.kept.map((id, i) => [id, i]));
  const isShared = (edge) => circuit.shares[edge.id] >= Math.max(state.share, Number.MIN_VALUE);
  const ids = state.share !== null ? edges.filter(isShared).map((edge) => edge.id)
    : state.best === null ? circuit.kept : ranked.slice(0, state.best);
  const shown = ids.map((id) => {
    const effects = circuit.effects && place.has(id) ? circuit.effects[place.get(id)] : null;
    const score = circuit.scores[id];
    const effect = effects && mean(effects);
    const share = circuit.shares ? circuit.shares[id] : null;
    const interval = circuit.intervals?.map((ends) => ends[id]);
    return { ...edges[id], score, share, interval, effects, effect, value: state.show === "effect" && effect !== null ? effect : score };
  });
  const drawn = shown.filter((edge) => state.kinds.has(edge.kind));
  const nodes = new Set(shown.flatMap((edge) => [edge.sender, ...edge.nodes]));
  return { circuit, shown, drawn, nodes, most: Math.max(...shown.map((edge) => Math.abs(edge.value)), 0) };
}
const SURE = 0.95; // share of the replicates from which on an edge counts as sure
const percent = (share) => `${Math.round(100 * share)}\u202f%`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const deviation = (values) => {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
};
const startOfScores = Math.min(50, edges.length);
if (isScores) state.best = startOfScores;
if (!isScores && circuits.length > 1) state.circuit = circuits.length >> 1;
let view = currentView();

// --- words ------------------------------------------------------------------------------------

const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("-", "−").replace("e+", "e");
  return String(Number(value.toPrecision(3))).replace("-", "−");
};
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const count = (value) => value.toLocaleString("en");
const counted = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
const arrow = (edge) => `${edge.sender} → ${edge.receiver}`;
const headName = ({ layer, index }) => `${layer}.${index}`; // in the picture
const describeNode = (name) => {
  if (name === "logits") return "the model's output";
  const { kind, layer, index, isAlone, span } = graph.nodes[name];
  const named = /^[A-Za-z]/.test(span) ? ` at the ${span}` : ` at tokens ${span.replace(":", " to before ")}`;
  const at = span === "rest" ? " at the other tokens" : span ? named : "";
  if (kind === "embedding") return (has("unit") ? "an input" : `${isAlone ? "" : "one of "}the embeddings`) + at;
  if (kind === "block") return `layer ${layer}${at}`;
  const what = { head: "attention head", mlp: "MLP", neurons: "neurons" }[kind] ?? kind;
  return `${what}${isAlone ? "" : ` ${index}`} of layer ${layer}${at}`;
};
const spread = (effects) => `${signed(Math.min(...effects))} to ${signed(Math.max(...effects))}`;

// --- elements ---------------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);
const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
};
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

"use strict";
// The head of the page, its controls, the prompts and the record of the run.

const label = (circuit) => {
  const { threshold, selection, sparsity, cluster } = circuit.run;
  if (cluster?.prompts) return `cluster ${cluster.number}: ${counted(cluster.prompts.length, "prompt")}`;
  if (typeof threshold === "number") return `threshold ${number(threshold)}`;
  if (selection?.edges !== undefined) return `of the best ${count(selection.edges)}`;
  if (selection?.threshold !== undefined) return `score ≥ ${number(selection.threshold)}`;
  return typeof sparsity === "number" ? `sparsity ${number(sparsity)}` : counted(circuit.kept.length, "edge");
};
const CARRIED = {
  resample: "what it carries on the corrupt prompt", zero: "nothing", mean: "its mean over the corrupt prompts",
};
const metricName = () => view.circuit.run.metric ?? data.metric ?? "loss";

function drawHead() {
  const { run } = view.circuit;
  byId("title").textContent = data.title;
  const kept = view.shown.length;
  const whole = counted(graph.numEdges, "edge");
  const absent = CARRIED[run.reference];
  const rest = absent ? `, and every other edge set to ${absent},` : ", without every other,";
  let text = state.share === null
    ? `The ${count(kept)} best of the model's ${whole}${run.method ? ` by ${run.method}` : ""}.`
    : `The ${counted(kept, "edge")} of ${count(graph.numEdges)} that at least ${percent(state.share)} of the replicates keep.`;
  if (isCircuit()) {
    text = `${count(kept)} of the model's ${whole} stay.`;
    if (typeof run.metric_final === "number") {
      const full = typeof run.metric_full === "number" ? `, where the whole model has ${tidy(run.metric_full)}` : "";
      text = `With only ${count(kept)} of the model's ${whole} running${rest} ${metricName()} is ${tidy(run.metric_final)}${full}.`;
    }
  }
  if (view.circuit.shares) text += ` ${surely()}`;
  byId("lead").textContent = text;
  const prompted = prompts.length ? `first ${counted(prompts.length, "prompt")}` : "";
  const facts = [
    ["Edges", count(kept), `${number((100 * kept) / graph.numEdges)} % of ${count(graph.numEdges)}`],
    ["Nodes", count(view.nodes.size), `of ${count(graph.numNodes)}`],
    ...(typeof run.metric_final === "number" && isCircuit() ? [[metricName(), tidy(run.metric_final), "of the circuit; lower is better"]] : []),
    ...(prompts.length && isCircuit() && typeof run.metric_final !== "number"
      ? [[`${metricName()}, circuit`, tidy(mean(view.circuit.losses)), prompted]] : []),
    ...(prompts.length && isCircuit() ? [[`${metricName()}, no edges`, tidy(mean(prompts.map((one) => one.empty))), prompted]] : []),
    ...(run.method ? [["Method", run.method, [isCircuit() ? label(view.circuit) : "", run.reference].filter(Boolean).join(", ")]] : []),
    ...(run.prompts || prompts.length ? [["Prompts", count(run.cluster?.prompts?.length ?? run.prompts ?? prompts.length), run.task ?? ""]] : []),
  ];
  byId("facts").replaceChildren(...facts.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, el("b", {}, value), el("small", {}, note)))));
}
// How many edges are sure, in words.
function surely() {
  const { shares, run } = view.circuit;
  const sure = shares.filter((share) => share >= SURE).length;
  const some = shares.filter((share) => share > 0).length - sure;
  return `The search was repeated on ${counted(run.replicates.count, "resampled set")} of prompts: ${counted(sure, "edge")} `
    + `${sure === 1 ? "is" : "are"} kept in at least ${percent(SURE)} of them, ${count(some)} in fewer.`;
}
const tidy = (value) => (Math.abs(value) < 1e-9 ? "0" : number(value));

// --- controls ---------------------------------------------------------------------------------

function drawControls() {
  const controls = [];
  if (circuits.length > 1) controls.push(sweepSlider());
  if (data.ranking !== null) controls.push(...rankingControls());
  if (circuits.length === 1 && circuits[0].shares) controls.push(...shareControls());
  if (circuits[0].effects && state.best === null) {
    controls.push(el("label", {}, "Lines show ", el("select", { id: "show", onchange: (event) => update({ show: event.target.value }) },
      el("option", { value: "score", selected: state.show === "score" }, "the method's score"),
      el("option", { value: "effect", selected: state.show === "effect" }, "the loss without the edge"))));
  }
  byId("controls").replaceChildren(...controls);
}

function sweepSlider() {
  const says = el("output", { for: "sweep" });
  const say = () => { says.textContent = `${label(view.circuit)} · ${counted(view.shown.length, "edge")}`; };
  const slider = el("input", { type: "range", id: "sweep", min: 0, max: circuits.length - 1, step: 1, value: state.circuit, "aria-label": "Circuit of the sweep",
    oninput: (event) => { update({ circuit: Number(event.target.value) }); } });
  listeners.push((change) => { if ("circuit" in change) { slider.value = state.circuit; say(); slider.setAttribute("aria-valuetext", says.textContent); } });
  say();
  return el("div", { class: "slider" }, slider, says);
}

function shareControls() {
  const says = el("output", { for: "share" });
  const say = (value) => { says.textContent = `kept in at least ${percent(value / 100)} of the replicates`; };
  const slider = el("input", { type: "range", id: "share", min: 1, max: 100, step: 1, value: 100 * SURE, "aria-label": "Least share of the replicates",
    oninput: () => { say(slider.value); update({ share: slider.value / 100 }); } });
  say(slider.value);
  const box = el("div", { class: "slider", hidden: state.share === null }, slider, says);
  const choice = (text, isShare) => el("label", {}, el("input", { type: "radio", name: "mode", checked: (state.share !== null) === isShare,
    onchange: () => { box.hidden = !isShare; update({ share: isShare ? slider.value / 100 : null }); } }), text);
  return [el("fieldset", { class: "choice" }, el("legend", { class: "hidden" }, "Edges in view"),
    choice(`Circuit (${count(circuits[0].kept.length)})`, false), choice("By replicates", true)), box];
}

function rankingControls() {
  const most = Math.min(edges.length, MOST_DRAWN);
  const steps = 200;
  const toBest = (step) => Math.round(most ** (step / steps));
  const toStep = (best) => Math.round((steps * Math.log(Math.max(1, best))) / Math.log(Math.max(2, most)));
  const amount = el("input", { type: "number", min: 1, max: most, value: state.best ?? startOfScores, "aria-label": "How many of the best edges" });
  const slider = el("input", { type: "range", id: "best", min: 0, max: steps, value: toStep(state.best ?? startOfScores), "aria-label": "How many of the best edges" });
  slider.addEventListener("input", () => { amount.value = toBest(Number(slider.value)); update({ best: Number(amount.value) }); });
  amount.addEventListener("change", () => {
    const best = Math.max(1, Math.min(most, Math.round(Number(amount.value)) || 1));
    amount.value = best;
    slider.value = toStep(best);
    update({ best });
  });
  const box = el("div", { class: "slider", hidden: state.best === null }, slider, el("span", {}, "best", amount, `of ${count(edges.length)}`));
  if (isScores) return [box];
  const choice = (text, isBest) => el("label", {}, el("input", { type: "radio", name: "mode", checked: (state.best !== null) === isBest,
    onchange: () => { box.hidden = !isBest; update({ best: isBest ? Number(amount.value) : null }); } }), text);
  return [el("fieldset", { class: "choice" }, el("legend", { class: "hidden" }, "Edges in view"),
    choice(`Circuit (${count(circuits[0].kept.length)})`, false), choice("Best by score", true)), box];
}

function drawLegend() {
  const words = { q: "queries", k: "keys", v: "values", head: "heads", mlp: "MLPs", block: "layers", unit: "units" };
  const shown = [...new Set(graph.kinds)].map((kind) => [kind, `into ${words[kind] ?? kind}`]);
  const kinds = shown.map(([kind, text]) => el("label", { class: "kind" },
    el("input", { type: "checkbox", checked: state.kinds.has(kind), value: kind, onchange: (event) => {
      const chosen = new Set(state.kinds);
      if (event.target.checked) chosen.add(kind); else chosen.delete(kind);
      update({ kinds: chosen });
    } }),
    svg("svg", { width: 26, height: 8, "aria-hidden": "true" }, svg("g", { class: `edge ${kind}` }, svg("path", { class: "line", d: "M1 4H25", "stroke-width": 2.5 }))),
    text));
  const sign = (name, text) => el("span", { class: "sign" }, el("i", { class: name }), text);
  const fading = [1, 0.5, 0.1].map((share) => svg("path", { class: "line", d: "M1 4H15", "stroke-width": 3, "stroke-opacity": 0.08 + 0.87 * share }));
  const sure = el("span", { class: "sign" }, fading.map((line) => svg("svg", { width: 17, height: 8, "aria-hidden": "true" }, svg("g", { class: "edge" }, line))),
    "kept in all, half, a tenth of the replicates");
  byId("legend").replaceChildren(...kinds, sign("positive", "loss rises without it"), sign("negative", "loss falls without it"),
    ...(circuits[0].shares ? [sure] : []));
}

// --- prompts ----------------------------------------------------------------------------------

function drawPrompts() {
  if (!prompts.length) {
    byId("prompts").replaceChildren(el("p", { class: "empty" }, "This report was made without the model, so its prompts are not shown."));
    return;
  }
  const { losses } = view.circuit;
  const chip = (text, kind) => el("span", { class: `answer ${kind}` }, el("span", { class: "hidden" }, kind === "right" ? "right: " : "wrong: "), readable(text));
  const isOfCluster = (i) => !view.circuit.run.cluster?.prompts || view.circuit.run.cluster.prompts.includes(i);
  const cards = prompts.map((prompt, i) => !isOfCluster(i) ? null : el("li", {},
    el("p", { class: "text" }, el("span", { class: "rank" }, `${i + 1}`), prompt.tokens.map((token) => el("span", { class: "token" }, token)), " ",
      prompt.answers.map((text) => chip(text, "right")), prompt.wrong.slice(0, 5).map((text) => chip(text, "wrong")),
      prompt.wrong.length > 5 ? el("span", { class: "hint" }, ` and ${prompt.wrong.length - 5} more`) : null),
    el("dl", { class: "losses" }, [["whole model", prompt.full], ...(isCircuit() ? [["circuit", losses[i]]] : []), ["no edges", prompt.empty]].map(([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, tidy(value)))))));
  const total = view.circuit.run.prompts;
  const some = view.circuit.run.cluster ? "The prompts of this cluster" : total > prompts.length ? `The first ${prompts.length} of ${count(total)} prompts` : "All prompts";
  const note = `${some}, with the right and wrong answers and ${metricName()} on each; lower is better.`;
  byId("prompts").replaceChildren(el("p", { class: "hint" }, note), el("ol", { class: "prompts" }, cards));
}

// --- record -----------------------------------------------------------------------------------

const isSmall = (value) => value === null || typeof value !== "object" || JSON.stringify(value).length < 90;
const inline = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function tree(value) {
  return el("dl", { class: "record" }, Object.entries(value).map(([key, entry]) => [el("dt", {}, key), el("dd", {}, isSmall(entry) ? inline(entry) : branch(entry))]));
}

// Filled when it is first opened: a search has thousands of decisions.
function branch(value) {
  const isList = Array.isArray(value);
  const size = isList ? value.length : Object.keys(value).length;
  const details = el("details", { ontoggle: () => {
    if (details.children.length > 1) return;
    details.append(isList ? el("pre", { tabindex: 0 }, value.map((entry) => JSON.stringify(entry)).join("\n")) : tree(value));
  } }, el("summary", {}, counted(size, isList ? "row" : "field").replace("1 rows", "1 row")));
  return details;
}

function drawRecord() {
  const { run } = view.circuit;
  const whole = el("details", { id: "run", open: byId("run")?.open, ontoggle: () => {
    if (whole.children.length === 1) whole.append(tree(run));
  } }, el("summary", {}, `Everything that determined this result: ${counted(Object.keys(run).length, "field")}`));
  const parts = [Object.keys(run).length ? whole : el("p", { class: "empty" }, "The file has no record of its run.")];
  for (const record of data.records) parts.push(el("h3", {}, `Record: ${record.kind}`), tree(record));
  byId("record").replaceChildren(...parts);
  const version = run.versions?.jaxcircuits;
  byId("footer").textContent = `Drawn by jaxcircuits${version ? ` from a run of version ${version}` : ""}. This page is one file: it loads nothing and sends nothing.`;
}

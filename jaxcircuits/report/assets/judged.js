"use strict";
// What the circuit is worth: numbers with their controls beside them, how losses spread, and the five tests.

const CHIPS = 12; // superfluous edges that are shown at once
const SPREAD = { row: 40, top: 4, axis: 24 };

function drawJudged() {
  const { measures, losses, tests } = data.judged;
  const cards = [];
  if (measures.length) {
    cards.push(el("div", { class: "card" }, el("h2", {}, "What it is worth"),
      el("p", { class: "hint" }, "Faithfulness: 1 is all that the model does beyond a run without edges; CMD is best at 0. A number that its controls reach shows nothing."),
      el("div", { class: "measures" }, measures.map(measure)),
      losses.length ? el("div", { class: "spreads", id: "spreads" }) : null));
  }
  if (tests.length) {
    cards.push(el("div", { class: "card" }, el("h2", {}, "Hypothesis tests"),
      el("p", { class: "hint" }, `Each at level ${number(tests[0].level)}. Rejecting the first three speaks against the circuit, rejecting the last two for it.`),
      el("ol", { class: "tests" }, tests.map(test))));
  }
  byId("judged").replaceChildren(...cards);
}

const amount = ({ value, spread: deviation }) => [number(value), deviation === null ? "" : ` ± ${number(deviation)}`].join("");
const isRefused = (one) => one.value === null;

function measure(one, place, all) {
  const reason = place > 0 && one.refused === all[0].refused ? "for the same reason" : one.refused;
  return el("article", {}, el("h3", {}, one.name),
    isRefused(one) ? [el("b", { class: "refused" }, "refused"), el("small", {}, reason)]
      : [el("b", {}, amount(one)), el("small", {}, one.note)],
    one.beside.length ? el("dl", { class: "pairs" }, one.beside.map((control) => [
      el("dt", {}, control.name, control.note ? el("small", {}, control.note) : null),
      el("dd", isRefused(control) ? { class: "refused", title: control.refused } : {}, isRefused(control) ? "refused" : amount(control)),
    ])) : null);
}

// Drawn when widths are known: from the least to the most, a box around the middle half, a line at the median, a dot at the mean.
function drawSpreads() {
  const box = byId("spreads");
  if (!box) return;
  const { losses } = data.judged;
  const width = Math.max(240, box.clientWidth);
  const x = scale(losses.flatMap((loss) => [loss.quantiles[0], loss.quantiles.at(-1)]), 8, Math.min(width, 860) - 8);
  const bottom = SPREAD.top + SPREAD.row * losses.length;
  const rows = losses.map((loss, i) => {
    const y = SPREAD.top + SPREAD.row * i;
    const [least, lower, median, upper, most] = loss.quantiles.map(x.at);
    return svg("g", { class: "spread" },
      svg("title", {}, `${loss.name}: mean ${number(loss.mean)} ± ${number(loss.standard_error)}, ${number(loss.quantiles[0])} to ${number(loss.quantiles.at(-1))}`),
      svg("text", { class: "tick", x: 0, y: y + 11 }, `${loss.name}: ${number(loss.mean)} ± ${number(loss.standard_error)}`),
      svg("line", { x1: least, x2: most, y1: y + 26, y2: y + 26 }),
      svg("rect", { x: lower, width: Math.max(1, upper - lower), y: y + 19, height: 14, rx: 3 }),
      svg("line", { class: "middle", x1: median, x2: median, y1: y + 19, y2: y + 33 }),
      svg("circle", { cx: x.at(loss.mean), cy: y + 26, r: 4 }));
  });
  const ticks = x.ticks.map((tick) => svg("text", { class: "tick", x: x.at(tick), y: bottom + 18, "text-anchor": "middle" }, number(tick)));
  box.replaceChildren(el("h3", {}, `${metricName()} over ${counted(losses[0].count, "prompt")}: mean ± standard error, quartiles, extremes`),
    svg("svg", { width, height: bottom + SPREAD.axis, role: "group", "aria-label": "How losses spread" }, rows, ticks));
}

function test(one) {
  const says = one.speaks === null ? one.verdict : `${one.verdict}: ${one.speaks} the circuit`;
  return el("li", {},
    el("div", {}, el("h3", {}, one.name), el("p", { class: "hint" }, one.question),
      one.reason ? el("p", { class: "hint" }, `Undecided: ${one.reason}.`) : null),
    el("dl", { class: "pairs" }, one.statistic === null ? null : [
      el("dt", {}, "p"), el("dd", {}, number(one.p)), el("dt", {}, one.statisticName), el("dd", {}, number(one.statistic))]),
    el("p", {}, el("span", { class: `verdict ${one.speaks ?? "undecided"}`, title: one.null }, says)),
    one.superfluous.length ? superfluous(one.superfluous) : null);
}

function superfluous(names) {
  const rest = names.slice(CHIPS);
  return el("div", { class: "superfluous" }, el("span", { class: "hint" }, `${counted(names.length, "superfluous edge")}: `),
    names.slice(0, CHIPS).map(edgeChip),
    rest.length ? el("details", {}, el("summary", {}, `${count(rest.length)} more`), rest.map(edgeChip)) : null);
}

function edgeChip(name) {
  const edge = edges.find((one) => one.name === name);
  return el("button", { type: "button", class: "chip", disabled: !edge, onclick: () => update({ edge: edge.id, node: null }) }, name);
}

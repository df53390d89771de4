"use strict";
// Small line charts: loss against edges of a sweep, faithfulness against edges of an evaluation.

const CHART = { height: 250, left: 52, right: 18, top: 14, bottom: 40 };
const SIDE_BY_SIDE = 900; // pixels from which two charts stand in one line

// A scale from values to pixels; logarithmic where values span more than a factor of 50 above zero.
function scale(values, from, to) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const isLog = low > 0 && high / low > 50;
  const f = isLog ? Math.log : (value) => value;
  const span = f(high) - f(low) || 1;
  const at = (value) => from + ((f(value) - f(low)) / span) * (to - from);
  const ticks = isLog ? powers(low, high) : steps(low, high);
  return { at, ticks };
}
const powers = (low, high) => {
  const all = [];
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power += 1) all.push(10 ** power);
  const every = Math.ceil(all.length / 5);
  return all.filter((_, i) => i % every === 0);
};
const steps = (low, high) => {
  const rough = (high - low || 1) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((times) => times * unit >= rough);
  const all = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) all.push(Number(tick.toPrecision(12)));
  return all;
};

// `series`: {name, kind, points, joined}. `points`: {x, y, low, high, name, chosen, choose}; `joined`: those that the
// line joins; between low and high lies a band. `rule`: a horizontal line.
function chart({ title, note, xLabel, yLabel, series, rule }) {
  const { height, left, right, top, bottom } = CHART;
  const room = byId("edges").clientWidth;
  const width = Math.max(240, (room >= SIDE_BY_SIDE ? Math.min(640, (room - 20) / 2) : room) - 42);
  const all = series.flatMap((one) => one.points);
  const x = scale(all.map((point) => point.x), left + 8, width - right);
  const ys = all.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]);
  const y = scale(rule === undefined ? ys : [...ys, rule], height - bottom - 8, top);
  const parts = [];
  for (const tick of x.ticks) {
    parts.push(svg("text", { class: "tick", x: x.at(tick), y: height - bottom + 16, "text-anchor": "middle" }, count(tick)));
  }
  for (const tick of y.ticks) {
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y.at(tick), y2: y.at(tick) }),
      svg("text", { class: "tick", x: left - 8, y: y.at(tick), dy: "0.35em", "text-anchor": "end" }, number(tick)));
  }
  if (rule !== undefined) parts.push(svg("line", { class: "rule", x1: left, x2: width - right, y1: y.at(rule), y2: y.at(rule) }));
  for (const one of series) parts.push(line(one, x, y));
  parts.push(svg("text", { class: "label", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  const names = series.length < 2 ? null : el("p", { class: "legend" }, series.map(({ name, kind }) => el("span", { class: "sign" },
    svg("svg", { width: 26, height: 8, "aria-hidden": "true" }, svg("g", { class: `lines ${kind}` }, svg("path", { class: "series", d: "M1 4H25" }))), name)));
  return el("figure", { class: "card" }, el("h2", {}, title), el("p", { class: "hint" }, note),
    svg("svg", { width, height, role: "group", "aria-label": `${yLabel} against ${xLabel}` }, parts), names);
}

function line({ kind = "", points, joined = (sorted) => sorted }, x, y) {
  const sorted = [...points].sort((a, b) => a.x - b.x);
  const at = (list, value) => list.map((point) => `${x.at(point.x)},${y.at(value(point))}`).join(" ");
  const banded = sorted.filter((point) => point.low !== undefined);
  const circles = sorted.map((point) => svg("circle", {
    class: `point${point.chosen ? " chosen" : ""}${point.choose ? " active" : ""}`, cx: x.at(point.x), cy: y.at(point.y), r: point.chosen ? 6 : 4,
    ...(point.choose ? { role: "button", tabindex: 0, "aria-label": point.name, onclick: point.choose,
      onkeydown: (event) => { if (event.key === "Enter") point.choose(); } } : {}),
  }, svg("title", {}, point.name)));
  return svg("g", { class: `lines ${kind}` },
    banded.length ? svg("polygon", { class: "band", points: `${at(banded, (p) => p.high)} ${at([...banded].reverse(), (p) => p.low)}` }) : null,
    svg("polyline", { class: "series", points: at(joined(sorted), (p) => p.y) }), circles);
}

// The points that no other beats in both fewer edges and a lower value.
function front(sorted) {
  let lowest = Infinity;
  return sorted.filter(({ y }) => y < lowest && ((lowest = y), true));
}

function drawCharts() {
  const figures = [];
  const swept = circuits.filter(({ run }) => typeof run.metric_final === "number" && !run.cluster); // each cluster has its own prompts
  if (swept.length > 1) {
    const metric = swept[0].run.metric ?? "loss";
    figures.push(chart({
      title: `${metric} against size`, note: "One point a circuit; lower and further left is better. Click a point to draw its circuit.",
      xLabel: "edges kept", yLabel: metric,
      series: [{ joined: front, points: swept.map((circuit) => ({
        x: circuit.kept.length, y: circuit.run.metric_final, chosen: circuit === view.circuit,
        name: `${label(circuit)}: ${counted(circuit.kept.length, "edge")}, ${metric} ${number(circuit.run.metric_final)}`,
        choose: () => update({ circuit: circuits.indexOf(circuit) }),
      })) }],
    }));
  }
  if (data.judged.curves.length) {
    figures.push(chart({
      title: "Faithfulness against size", note: "How much of the model's behaviour the best edges recover; the dashed line is all of it.",
      xLabel: "edges kept", yLabel: "faithfulness", rule: 1,
      series: data.judged.curves.map(({ name, kind, points }) => ({ name, kind,
        points: points.map((point) => ({ ...point, name: `${name}, ${counted(point.x, "edge")}: ${number(point.y)}` })) })),
    }));
  }
  byId("charts").replaceChildren(...figures);
}

"use strict";
// One head's attention pattern on a chosen prompt, as a triangle of shades with tokens at its sides.

const SHADES = 255;
const LEGIBLE = 9; // pixels a token, from which labels are drawn
const readable = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥").trim() || "␣";

function attention(head) {
  if (!prompts.length) return [el("p", { class: "empty" }, "This report was made without the model, so it has no attention patterns.")];
  if (!data.patterns[head]) return [el("p", { class: "empty" }, "This head was not inspected: it is in no circuit of this report.")];
  const options = prompts.map((prompt, i) =>
    el("option", { value: i, selected: i === state.prompt }, `${i + 1}: ${prompt.tokens.join(" ").replace(/\s+/g, " ").trim()}`));
  return [
    el("label", { class: "chooser" }, el("span", { class: "hidden" }, "Prompt"),
      el("select", { onchange: (event) => update({ prompt: Number(event.target.value) }) }, options)),
    drawPattern(head),
  ];
}

function drawPattern(head) {
  const tokens = prompts[state.prompt].tokens.map(readable);
  const shades = Uint8Array.from(atob(data.patterns[head][state.prompt]), (c) => c.charCodeAt(0));
  const share = (to, from) => shades[to * tokens.length + from] / SHADES;
  const room = Math.max(240, byId("panel").clientWidth - 42);
  const beside = Math.min(84, 10 + 6.4 * Math.max(...tokens.map((token) => [...token].length)));
  const isRoomy = (room - beside) / tokens.length >= LEGIBLE;
  const label = isRoomy ? beside : 0;
  const cell = Math.min(20, (room - label) / tokens.length);
  const size = cell * tokens.length;
  const said = el("p", { class: "hint", role: "status" }, sentence(tokens, share, tokens.length - 1));
  const cells = [];
  tokens.forEach((_, to) => tokens.slice(0, to + 1).forEach((__, from) => {
    if (!isRoomy && share(to, from) === 0) return;
    cells.push(svg("rect", {
      x: label + from * cell, y: to * cell, width: cell * 0.97, height: cell * 0.97, "data-to": to, "data-from": from,
      "fill-opacity": (0.06 + 0.94 * share(to, from)).toFixed(3),
    }));
  }));
  const short = (token) => ([...token].length > 12 ? `${[...token].slice(0, 11).join("")}…` : token);
  const labels = !isRoomy ? [] : tokens.flatMap((token, i) => [
    svg("text", { x: label - 6, y: (i + 0.5) * cell, dy: "0.35em", "text-anchor": "end" }, short(token)),
    svg("text", { transform: `translate(${label + (i + 0.5) * cell},${size + 6}) rotate(-90)`, dy: "0.35em", "text-anchor": "end" }, short(token)),
  ]);
  const picture = svg("svg", {
    class: "pattern", width: label + size, height: size + (labels.length ? label : 4), role: "img",
    "aria-label": `Attention of ${head}. ${sentence(tokens, share, tokens.length - 1)}`,
    onpointermove: (event) => {
      const { to, from } = event.target.dataset;
      if (to !== undefined) said.textContent = `“${tokens[to]}” reads “${tokens[from]}”: ${percent(share(to, from))}`;
    },
    onpointerleave: () => { said.textContent = sentence(tokens, share, tokens.length - 1); },
  }, cells, labels);
  return el("div", { class: "attention" }, picture, said,
    el("p", { class: "hint" }, "Rows read columns; of the whole model on the clean prompt."));
}

function sentence(tokens, share, to) {
  const best = tokens.map((_, from) => from).filter((from) => share(to, from) >= 0.01).sort((a, b) => share(to, b) - share(to, a)).slice(0, 3);
  return `The last token, “${tokens[to]}”, reads ${best.map((from) => `“${tokens[from]}” ${percent(share(to, from))}`).join(", ")}.`;
}

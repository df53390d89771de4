"use strict";
// The edges in view as a table: sorted by a column, filtered by words, copied as tab-separated text.

const SHOWN_ROWS = 100;
const COLUMNS = [
  { title: "Sender", of: (edge) => edge.sender, text: (edge) => edge.sender },
  { title: "Receiver", of: (edge) => edge.receiver, text: (edge) => edge.receiver },
  { title: "Score", isNumber: true, of: (edge) => edge.score, text: (edge) => signed(edge.score) },
  { title: "Kept in replicates", isNumber: true, of: (edge) => edge.share, text: (edge) => percent(edge.share), isShare: true },
  { title: "Loss without it", isNumber: true, of: (edge) => edge.effect, text: (edge) => (edge.effects ? signed(edge.effect) : "–"), isEffect: true },
  { title: "Over prompts", isNumber: true, of: (edge) => edge.effects && deviation(edge.effects), text: (edge) => (edge.effects ? spread(edge.effects) : "–"), isEffect: true },
];
const table = { column: "Score", descending: true, all: false };

const columns = () => COLUMNS.filter((column) => (!column.isEffect || view.shown.some((edge) => edge.effects))
  && (!column.isShare || view.circuit.shares));

function rows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find(({ title }) => title === table.column);
  const compare = (a, b) => (column.isNumber ? (column.of(a) ?? 0) - (column.of(b) ?? 0) : column.of(a).localeCompare(column.of(b), "en", { numeric: true }));
  return view.shown
    .filter((edge) => words.every((word) => edge.name.includes(word.replace("→", "->"))))
    .sort((a, b) => (table.descending ? -1 : 1) * compare(a, b) || a.id - b.id);
}

function drawTable() {
  const list = rows();
  const shown = table.all ? list : list.slice(0, SHOWN_ROWS);
  const head = columns().map(({ title, isNumber }) => {
    const chosen = title === table.column;
    const sort = () => {
      Object.assign(table, { column: title, descending: chosen ? !table.descending : Boolean(isNumber) });
      drawTable();
      [...byId("table").querySelectorAll("th button")].find((button) => button.dataset.title === title)?.focus();
    };
    return el("th", { scope: "col", class: isNumber ? "number" : null, "aria-sort": chosen ? (table.descending ? "descending" : "ascending") : "none" },
      el("button", { type: "button", "data-title": title, onclick: sort }, title, el("span", { "aria-hidden": "true" }, chosen ? (table.descending ? " ↓" : " ↑") : "")));
  });
  const body = shown.map((edge) => el("tr", { class: edge.id === state.edge ? "chosen" : null, onclick: () => choose(edge) },
    columns().map((column, i) => el("td", { class: column.isNumber ? "number" : null },
      i === 0 ? el("button", { type: "button", "aria-label": `Show ${arrow(edge)}` }, column.text(edge)) : column.text(edge)))));
  const more = list.length > shown.length
    ? el("button", { type: "button", class: "more", onclick: () => { table.all = true; drawTable(); } }, `Show all ${count(list.length)}`) : null;
  byId("table").replaceChildren(...[
    list.length ? el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body))
      : el("p", { class: "empty" }, view.shown.length ? "No edge has all these words in its name." : "There is no edge in view."),
    more].filter(Boolean));
}

function choose(edge) {
  update({ edge: edge.id, node: null });
}

const asText = () => [columns().map(({ title }) => title).join("\t"),
  ...rows().map((edge) => columns().map((column) => (column.isNumber ? column.of(edge) ?? "" : column.of(edge))).join("\t"))].join("\n");

async function copyTable() {
  const text = asText();
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy as text"; }, 1500);
  } catch {
    const area = el("textarea", { readonly: true, rows: 8, "aria-label": "The table as text, selected: copy it" });
    area.value = text;
    byId("table").prepend(area);
    area.select();
  }
}

"use strict";
// Tables sort by a click on a head; samples can be filtered, searched and sorted. Texts are set as text, never as HTML.
const STEP = 20; // samples shown at once

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const sort = (head, column) => {
    const down = head.getAttribute("aria-sort") === "descending";
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent || null : Number(cell.dataset.value);
    };
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b)) * (down ? 1 : -1));
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort(head, column));
  });
}

function card(row, data, against) {
  const made = element("article", "sample");
  const header = made.appendChild(element("header"));
  header.append(element("code", "", row.id));
  const won = row.won[against];
  if (won) header.append(element("strong", won > 0 ? "better" : "worse", won > 0 ? "won" : "lost"));
  row.groups.forEach((group) => header.append(element("span", "", group)));
  for (const [key, values] of Object.entries(row.formatted)) {
    header.append(element("span", "", `${key.replaceAll("_", " ")} ${values.join(" | ")}`));
  }
  const list = made.appendChild(element("dl"));
  for (const [key, texts] of row.shown) {
    list.append(element("dt", "", key.replaceAll("_", " ")));
    const place = list.appendChild(element("dd", "texts"));
    texts.forEach((text, k) => {
      const cell = place.appendChild(element("div"));
      if (texts.length > 1) cell.append(element("div", "model", data.models[k]));
      cell.append(element("div", text ? "text" : "text empty", text || "(nothing)"));
    });
  }
  return made;
}

function choices(label, names) {
  const made = element("select");
  made.setAttribute("aria-label", label);
  names.forEach((name, k) => made.append(new Option(name, k)));
  return made;
}

function browser(place, data) {
  const keys = data.rows.length ? Object.keys(data.rows[0].values) : [];
  const last = data.models.length - 1;
  const state = { side: null, text: "", order: 0, against: Math.max(data.compared.length - 1, 0), shown: STEP };
  const controls = element("div", "controls");
  const cards = element("div");
  const more = element("button", "more");
  const orders = [["in order of the rows", (row, k) => k]];
  for (const key of keys) {
    const name = key.replaceAll("_", " ");
    orders.push([`lowest ${name}`, (row) => row.values[key][last]]);
    orders.push([`highest ${name}`, (row) => (row.values[key][last] === null ? null : -row.values[key][last])]);
    if (last > 0) orders.push([`largest change of ${name}`, (row) => -Math.abs(row.values[key][last] - row.values[key][0])]);
  }

  function show() {
    const sought = state.text.toLowerCase();
    const key = orders[state.order][1];
    const rows = data.rows
      .map((row, k) => ({ row, key: key(row, k) }))
      .filter(({ row }) => state.side === null || row.won[state.against] === state.side)
      .filter(({ row }) => !sought || JSON.stringify([row.id, row.groups, row.shown]).toLowerCase().includes(sought))
      .sort((a, b) => compare(a.key, b.key));
    cards.replaceChildren(...rows.slice(0, state.shown).map(({ row }) => card(row, data, state.against)));
    if (!rows.length) cards.append(element("p", "", "No sample fits."));
    more.hidden = rows.length <= state.shown;
    more.textContent = `Show more (${Math.min(state.shown, rows.length)} of ${rows.length})`;
  }

  function change(what) {
    Object.assign(state, { shown: STEP }, what);
    show();
  }

  function buttons() {
    const count = (side) => data.rows.filter((row) => row.won[state.against] === side).length;
    const sides = [["all", null, data.rows.length], ["won", 1, count(1)], ["lost", -1, count(-1)], ["tied", 0, count(0)]];
    return sides.map(([name, side, size]) => {
      const button = element("button", "", `${name} ${size}`);
      button.setAttribute("aria-pressed", String(side === state.side));
      button.addEventListener("click", () => {
        change({ side });
        fill();
      });
      return button;
    });
  }

  const search = element("input");
  search.type = "search";
  search.placeholder = "search";
  search.setAttribute("aria-label", "search");
  search.addEventListener("input", () => change({ text: search.value }));
  const order = choices("order", orders.map(([name]) => name));
  order.addEventListener("change", () => change({ order: Number(order.value) }));
  const against = choices("model", data.compared);
  against.value = state.against;
  against.addEventListener("change", () => {
    change({ against: Number(against.value) });
    fill();
  });
  more.addEventListener("click", () => {
    state.shown += STEP;
    show();
  });

  function fill() {
    const models = data.compared.length > 1 ? [against] : [];
    controls.replaceChildren(...(data.compared.length ? buttons() : []), ...models, search, order);
  }

  fill();
  show();
  place.replaceChildren(controls, cards, more);
  if (data.total > data.rows.length) {
    place.prepend(element("p", "", `${data.rows.length} of ${data.total} samples are here; all are in samples/.`));
  }
}

document.querySelectorAll("table:not(.matrix)").forEach(sortable);
document.querySelectorAll("script.data").forEach((data) => browser(data.nextElementSibling, JSON.parse(data.textContent)));

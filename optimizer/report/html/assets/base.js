"use strict";
// Elements, numbers, colours and tables. All text of a model gets into the page as a text node, never as HTML.
const Lathe = { data: JSON.parse(document.getElementById("data").textContent), redraw: [] };

Lathe.el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(2)) if (child !== null && child !== undefined && child !== "") made.append(child);
  return made;
};
Lathe.put = (id, ...children) => {
  const place = document.getElementById(id);
  place.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== ""));
  return place;
};

// Plotly reads a few HTML tags and entities in its texts.
Lathe.plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
Lathe.short = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`);

Lathe.count = (value) => {
  if (value === null || value === undefined) return "?";
  for (const [limit, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) if (value >= limit) return `${Number((value / limit).toPrecision(3))}${unit}`;
  return String(Math.round(value));
};
Lathe.size = (value) => (value === null || value === undefined ? "–" : value >= 1000 ? `${Lathe.count(value)}B` : `${Math.round(value)} B`);
Lathe.percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`);
Lathe.decibels = (row) => (row.equal ? "equal" : row.sqnr === null || row.sqnr === undefined ? "–" : `${row.sqnr.toFixed(1)} dB`);
Lathe.ms = (value) => (value === null || value === undefined ? "–" : `${Number(value.toPrecision(3))} ms`);
// Round values from 0 (or low, on a logarithmic axis) to high: about so many.
Lathe.ticks = (high, most) => {
  const rough = high / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, index) => index * step);
};
Lathe.logTicks = (low, high, most) => {
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) for (const factor of [1, 2, 5]) if (factor * power >= low && factor * power <= high) found.push(factor * power);
  return found.length > most ? found.filter((_, index) => index % Math.ceil(found.length / most) === 0) : found;
};
Lathe.number = (value) => (value === null || value === undefined ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4))));

// How near a layer's output is to the original's: four grades, and none where it is not known. Inner layers of INT8
// networks that lose nothing lie at 10 to 20 dB; below 6 dB the error has more than a quarter of the output's energy.
Lathe.grades = [["0", "30 dB or more"], ["1", "15 to 30 dB"], ["2", "6 to 15 dB"], ["3", "below 6 dB"], ["-none", "not measured"]];
Lathe.grade = (row) => {
  if (!row) return "-none";
  if (row.equal) return "0";
  if (row.sqnr === null || row.sqnr === undefined) return "-none";
  return row.sqnr >= 30 ? "0" : row.sqnr >= 15 ? "1" : row.sqnr >= 6 ? "2" : "3";
};

Lathe.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
Lathe.dark = () => {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
Lathe.narrow = () => innerWidth < 700;

Lathe.themes = () => {
  const button = document.getElementById("theme");
  const name = () => { button.textContent = Lathe.dark() ? "Light theme" : "Dark theme"; };
  const redraw = () => { name(); for (const draw of Lathe.redraw) draw(); };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = Lathe.dark() ? "light" : "dark"; redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  name();
};

// A table that sorts by any column, finds by name, and shows its first rows until all are asked for.
// columns: {title, text, value(row), cell(row)}; the first column names the row.
Lathe.table = ({ caption, columns, rows, first = 12, search, chosen }) => {
  const { el } = Lathe;
  let sorted = [...rows], wanted = "", all = rows.length <= first + 3, order = null;
  const body = el("tbody"), more = el("button", { type: "button", class: "quiet", onclick: () => { all = true; fill(); } });
  const heads = columns.map((column, index) => el("th", { scope: "col", class: column.text ? "text" : null }, el("button", { type: "button", onclick: () => sort(index) }, column.title)));
  const mark = () => { if (chosen) for (const line of body.children) line.classList.toggle("chosen", line.row === chosen()); };
  const fill = () => {
    const found = wanted ? sorted.filter((row) => columns[0].value(row).toLowerCase().includes(wanted)) : sorted;
    const shown = all ? found : found.slice(0, first);
    body.replaceChildren(...shown.map((row) => {
      const cells = columns.map((column, index) => el(index ? "td" : "th", { scope: index ? null : "row", class: column.text ? "text" : null, title: index ? null : column.value(row) }, column.cell(row)));
      const line = el("tr", {}, cells);
      line.row = row.name;
      return line;
    }));
    mark();
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${found.length.toLocaleString("en")} rows`;
  };
  const sort = (index) => {
    const down = order && order[0] === index ? !order[1] : !columns[index].text;
    order = [index, down];
    const value = columns[index].value, known = (one) => one !== null && one !== undefined;
    sorted = [...rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (!known(a) || !known(b)) return known(b) - known(a);
      return (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) * (down ? -1 : 1);
    });
    heads.forEach((head, place) => { if (place === index) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort"); });
    fill();
  };
  const box = search ? el("input", { type: "search", placeholder: search, "aria-label": search, oninput: () => { wanted = box.value.trim().toLowerCase(); fill(); } }) : null;
  fill();
  const table = el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, heads)), body);
  const whole = el("div", {}, box && el("div", { class: "tools" }, box), el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table), more);
  whole.mark = mark; // rows stay, and so does the keyboard on one of them
  return whole;
};

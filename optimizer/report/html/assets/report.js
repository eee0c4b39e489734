"use strict";
// Fills the page. What is seen first is drawn first; the rest follows piece by piece, so that the page answers at once.
(() => {
  const { data, el, put } = Lathe, started = performance.now();
  const steps = [], figures = [];
  const drawn = (figure) => { figures.push(figure); return figure; };
  const paint = () => { for (const figure of figures) if (figure.isConnected) figure.paint(); };
  Lathe.redraw.push(paint);
  let narrow = Lathe.narrow();
  addEventListener("resize", () => { if (Lathe.narrow() !== narrow) { narrow = Lathe.narrow(); paint(); } });

  const list = (items) => el("ul", { class: "plain" }, items.map((item) => el("li", {}, item)));
  const some = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
  const facts = (pairs) => el("dl", { class: "facts" }, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

  // ---- the top
  put("title", data.title);
  put("sentence", data.sentence);
  const verdict = put("verdict", el("span", { class: "mark", "aria-hidden": "true" }, { good: "✓", bad: "✕", plain: "•" }[data.verdict.kind]), data.verdict.text);
  verdict.classList.add(data.verdict.kind);
  put("tiles", data.tiles.map((tile) => el("div", { class: tile.kind }, el("dt", {}, tile.title), el("dd", { class: "value" }, tile.value), el("dd", { class: "detail" }, tile.detail), el("dd", { class: "of" }, tile.of))));
  const judged = [];
  if (data.gates.length) judged.push(el("div", { class: "card" }, el("h3", {}, "Gates"), list(data.gates.map((gate) => [
    el("span", { class: gate.passed ? "good" : "bad" }, el("span", { class: "mark" }, gate.passed ? "✓ passed" : "✕ failed")), el("span", { class: "chip" }, gate.subject), gate.message]))));
  if (data.targets.length) judged.push(el("div", { class: "card" }, el("h3", {}, "Targets"), list(data.targets.map((target) => [
    el("span", { class: target.error ? "bad" : "good" }, el("span", { class: "mark" }, target.error ? "✕ failed" : "✓ built")), el("span", { class: "chip" }, target.name),
    target.error || `${target.files.length > 3 ? `${target.files.length} files` : target.files.join(", ")}, ${target.size}`,
    target.quality.length ? el("div", { class: "soft" }, `${target.measured}: ${target.quality.map((pair) => pair.join(" ")).join(", ")}`) : null,
    target.facts.length ? el("details", { class: "soft" }, el("summary", {}, target.facts.length === 1 ? "One note" : `${target.facts.length} notes`), list(target.facts)) : null]))));
  put("judged", judged);
  if (data.comparison) put("comparison", el("h3", {}, "Targets side by side"), Lathe.table({
    caption: "The original and each target", rows: data.comparison.rows, first: 12,
    columns: [{ title: "Target", text: true, value: (row) => row.name, cell: (row) => row.name },
      ...data.comparison.columns.map((title, index) => ({ title, text: title === "gates", value: (row) => (title === "gates" ? row.cells[index][1] : row.cells[index][0]), cell: (row) => row.cells[index][1] }))],
  }), list(data.comparison.notes));
  if (data.outputs.rows.length) put("outputs", el("h3", {}, "Each output against the original's"), Lathe.table({
    caption: "How near each output is to the original's", rows: data.outputs.rows, first: 12,
    columns: [{ title: "Output", text: true, value: (row) => row.name, cell: (row) => row.name },
      ...data.outputs.columns.map((title, index) => ({ title, value: (row) => row.cells[index][0] ?? (row.cells[index][1] === "equal" ? Infinity : null), cell: (row) => row.cells[index][1] }))],
  }));
  const warned = (title, lines, open) => el("details", { class: "card warned", open }, el("summary", {}, title), el("ul", {}, lines.map((line) => el("li", {}, line))));
  if (data.warnings.length) put("warnings", warned(data.warnings.length === 1 ? "1 warning" : `${data.warnings.length} warnings`, data.warnings, data.warnings.length <= 3));

  // ---- steps
  if (data.tradeoff.points.length > 1) { const figure = drawn(Lathe.tradeoff()); put("tradeoff", figure); steps.push(figure.paint); }
  else put("tradeoff", el("p", { class: "soft" }, data.tradeoff.points.length ? (data.steps.rows.length > 1 ? "Only one point has both figures: the table has them." : "No step was taken.") : "Accuracy was not measured: the run had no evaluation data. The table has the sizes."));
  put("steps-table", Lathe.table({
    caption: "Metrics after each step", rows: data.steps.rows, first: 30,
    columns: [
      { title: "After", text: true, value: (row) => row.name, cell: (row) => row.name },
      ...data.steps.columns.map((title, index) => ({ title, value: (row) => row.cells[index][0], cell: (row) => row.cells[index][1] })),
      { title: "time", value: (row) => row.seconds, cell: (row) => (row.seconds === null ? "" : `${row.seconds.toFixed(1)} s`) },
    ],
  }));
  put("steps-details", data.steps.details.map((step) => el("details", { class: "card" },
    el("summary", {}, el("strong", {}, step.name), el("span", { class: "count" }, step.changed ? `${some(step.edits.length + step.more, "edit")}${step.skips ? `, ${step.skips.toLocaleString("en")} skipped` : ""}` : "nothing to do")),
    step.worse.length ? el("p", {}, el("span", { class: "bad" }, el("span", { class: "mark" }, "Made worse: ")), step.worse.join(", ")) : null,
    step.metrics.length ? el("dl", { class: "figures" }, step.metrics.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, Lathe.number(value))))) : null,
    step.options.length ? el("details", {}, el("summary", { class: "soft" }, "Options, defaults included"), facts(step.options)) : null,
    step.edits.length ? list(step.edits.map(([node, what]) => [el("span", { class: "mono" }, node), ` ${what}`])) : null,
    step.more ? el("p", { class: "soft" }, `and ${step.more.toLocaleString("en")} more; report.json has them all`) : null)));

  // ---- layers
  const rows = data.layers, byName = new Map(rows.map((row) => [row.name, row]));
  let chosen = null, table = null, graphs = [];
  const pair = (values, show) => (values[0] === null || values[1] === values[0] ? show(values[1] ?? values[0]) : [el("span", { class: "was" }, `${show(values[0])} → `), show(values[1])]);
  const has = (key) => Lathe.measures.some((measure) => measure.key === key);
  const layerColumns = () => [
    { title: "Layer", text: true, value: (row) => row.name, cell: (row) => el("button", { type: "button", class: "name", onclick: () => choose(row.name, true) }, row.name) },
    { title: "Bytes", value: (row) => row.bytes[1], cell: (row) => pair(row.bytes, Lathe.size) },
    has("sqnr") ? { title: "Error", value: (row) => (row.equal ? 999 : row.sqnr), cell: (row) => (row.reason ? el("span", { class: "was", title: row.reason }, "–") : Lathe.decibels(row)) } : null,
    ...data.sensitive.map((step) => ({ title: Lathe.sensitivity(step), value: (row) => row.sensitivity[step], cell: (row) => (row.sensitivity[step] === undefined ? "–" : `${row.sensitivity[step].toFixed(1)} dB`) })),
    has("macs") ? { title: "MACs", value: (row) => row.macs[1], cell: (row) => pair(row.macs, Lathe.count) } : null,
    { title: "Zeros", value: (row) => row.zeros[1], cell: (row) => pair(row.zeros, Lathe.percent) },
    has("ms") ? { title: "Time", value: (row) => row.ms[1], cell: (row) => pair(row.ms, Lathe.ms) } : null,
    { title: "Operator", text: true, value: (row) => row.op, cell: (row) => row.op },
    { title: "Weight", text: true, value: (row) => row.weight.reduce((product, size) => product * (Number(size) || 1), 1), cell: (row) => row.weight.join("×") || "–" },
  ].filter(Boolean);
  const drawBars = (key) => {
    const figure = drawn(Lathe.bars(Lathe.measures.find((measure) => measure.key === key), rows, (name) => choose(name, false)));
    put("bars", figure);
    figure.paint();
  };
  if (rows.length && Lathe.measures.length) {
    const radios = Lathe.measures.map((measure, index) => el("label", {}, el("input", { type: "radio", name: "measure", value: measure.key, checked: index === 0, onchange: () => drawBars(measure.key) }), measure.title));
    table = Lathe.table({ caption: "Layers: before → after", search: "Find a layer by name", columns: layerColumns(), rows, chosen: () => chosen });
    put("layers-body", el("p", { class: "hint" }, `Choose a layer in the chart or in the table to see its weights and its output below. Error: SQNR of the layer's output against the original's.${data.sensitive.length ? " Sensitivity: SQNR of the model's outputs when this layer alone is changed; lower is more sensitive." : ""}${has("ms") ? " Time: of the model before a target lowers it." : ""}`),
      el("div", { class: "card" }, el("div", { class: "tools" }, el("fieldset", { class: "choice" }, el("legend", { class: "unseen" }, "What the bars show"), radios)), el("div", { id: "bars" })), table);
    steps.push(() => drawBars(Lathe.measures[0].key));
  } else put("layers-body", el("p", { class: "card soft" }, ["No layer is shown", ...data.notes].join(": ")));

  // ---- one layer
  const select = el("select", { id: "which", onchange: () => choose(select.value, false) }, rows.map((row) => el("option", { value: row.name }, Lathe.short(row.name, 70))));
  const figure = (title, chart, caption) => el("div", { class: "card" }, el("h3", {}, title), chart, caption && el("p", { class: "soft" }, caption));
  const weightCaption = (series) => series.map((one) => `${one.label.slice(0, 1).toUpperCase()}${one.label.slice(1)}: ${one.elements.toLocaleString("en")} weights, ${Lathe.percent(one.zeros)} zeros${one.sampled ? ` (drawn from ${one.sampled.toLocaleString("en")} of them)` : ""}`).join(". ") + (series.some((one) => one.clip) ? ". Dashed: the range of its INT8 levels, of the widest channel" : "") + ".";
  const outputCaption = (entry) => {
    if (!entry.before) return `Calibrated range of ${entry.clip_tensor}: ${Lathe.number(entry.clip[0])} to ${Lathe.number(entry.clip[1])}.`;
    return `Tensor ${entry.tensor}, ${data.measured}.${entry.clip ? ` Dashed: the calibrated range${entry.clip_tensor === entry.tensor ? "" : ` of ${entry.clip_tensor}`}, beyond which values are clipped.` : ""}`;
  };
  const describe = (row) => {
    const error = row.reason ? `not measured: ${row.reason}` : `${Lathe.decibels(row)}${row.behind ? `, behind its ${row.behind}` : ""}`;
    const pairs = [["Operator", row.op], ["Weight", row.weight.join("×") || "none"], ["Output", row.shape ? row.shape.join("×") : "not known"], ["Bytes", pair(row.bytes, Lathe.size)], row.macs[0] === null && row.macs[1] === null ? null : ["MACs", pair(row.macs, Lathe.count)], ["Zeros", pair(row.zeros, Lathe.percent)], ["Error of its output (SQNR)", error]];
    if (row.worst !== null && row.worst !== undefined) pairs.push(["Largest difference", Lathe.number(row.worst)]);
    for (const [step, value] of Object.entries(row.sensitivity)) pairs.push([Lathe.sensitivity(step), `${value.toFixed(1)} dB`]);
    if (row.ms[1] !== null) pairs.push(["Time, before lowering", pair(row.ms, Lathe.ms)]);
    if (row.inside) pairs.push(["Inside", row.inside]);
    if (row.parts.length !== 1 || row.parts[0] !== row.name) pairs.push(["Became", row.parts.join(", ") || "nothing: it is gone"]);
    return el("dl", { class: "figures" }, pairs.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  };
  const choose = (name, scroll) => {
    const row = byName.get(name);
    if (!row) return;
    chosen = name;
    select.value = name;
    const detail = data.detail[name], made = [];
    if (detail && detail.weights.length) made.push(figure("Weights", drawn(Lathe.weightChart(detail.weights)), weightCaption(detail.weights)));
    if (detail && detail.activation) made.push(figure("Output", detail.activation.before ? drawn(Lathe.activationChart(detail.activation)) : null, outputCaption(detail.activation)));
    for (const one of (detail && detail.spectra) || []) made.push(figure(one.of ? `Singular values, ${one.of}` : "Singular values", drawn(Lathe.spectrumChart(one)), `${one.by} kept rank ${one.rank} of ${one.full}${one.of ? ` of the layer's ${one.of}` : ""}.`));
    put("chosen", el("div", { class: "card" }, describe(row)), el("div", { class: "plots" }, made.length ? made : el("p", { class: "soft" }, "No histograms of this layer.")));
    for (const one of figures.filter((one) => made.some((box) => box.contains(one)))) one.paint();
    table.mark();
    for (const graph of graphs) graph.show(name);
    if (scroll) document.getElementById("layer").scrollIntoView();
  };
  const step = (by) => { const place = rows.findIndex((row) => row.name === chosen); choose(rows[(place + by + rows.length) % rows.length].name, false); };
  if (table) {
    put("layer-body", el("div", { class: "tools" }, el("label", { for: "which" }, "Layer"), select,
      el("button", { type: "button", class: "quiet", onclick: () => step(-1) }, "Previous"), el("button", { type: "button", class: "quiet", onclick: () => step(1) }, "Next")), el("div", { id: "chosen" }));
    const largest = rows.reduce((best, row) => (Math.max(...row.bytes) > Math.max(...best.bytes) ? row : best), rows[0]);
    steps.push(() => choose(largest.name, false));
  } else document.getElementById("layer").hidden = true;

  // ---- graphs
  const sides = data.graphs ? [["before", "Before", data.graphs.before], ["after", "After", data.graphs.after]] : [];
  if (sides.some(([, , graph]) => graph.boxes.length)) {
    const places = {}, made = {};
    const boxes = sides.map(([key, title, graph]) => {
      const act = (name) => () => made[key] && (name === "fit" ? made[key].fit() : made[key].zoom(name === "in" ? 1.35 : 1 / 1.35));
      places[key] = el("div", { class: "canvas", role: "img", "aria-label": `The graph ${key}: ${graph.boxes.length} boxes. The layer that is chosen above is framed in it.` });
      return el("div", { class: "card" }, el("h3", {}, el("span", {}, title, el("span", { class: "soft" }, ` · ${graph.boxes.length.toLocaleString("en")} boxes`)),
        el("span", { class: "zoom" }, [["in", "+", "Zoom in"], ["out", "−", "Zoom out"], ["fit", "Fit", "Show all of"]].map(([name, sign, label]) => el("button", { type: "button", class: "quiet", "aria-label": `${label} the graph ${key}`, onclick: act(name) }, sign)))),
      graph.boxes.length ? places[key] : el("p", { class: "soft" }, graph.reason));
    });
    const how = data.measured ? `Error is the SQNR of a layer's output against the original's, all errors before it included, measured on ${data.measured}.` : "Errors were not measured.";
    put("graph-body", el("p", { class: "hint" }, `${how} Each box is a layer with its activation and its Q/DQ pairs; click it to open it. Drag to move, Ctrl and the wheel to zoom.`),
      el("ul", { class: "legend" }, Lathe.grades.map(([grade, text]) => el("li", {}, el("span", { style: `background: var(--err${grade}); border-color: var(--edge${grade})` }), text))),
      el("div", { class: "tools" }, el("button", { type: "button", class: "quiet", onclick: () => graphs.forEach((graph) => graph.expand(chosen)) }, "Open or close the chosen layer"), el("button", { type: "button", class: "quiet", onclick: () => graphs.forEach((graph) => graph.begin()) }, "Back to the start")),
      el("div", { class: "graphs" }, boxes));
    for (const [key, , graph] of sides) if (graph.boxes.length) steps.push(() => { made[key] = Lathe.graph(places[key], graph, { name: key, choose: (name) => choose(name, false) }); graphs.push(made[key]); Lathe.graphs = graphs; });
  } else document.getElementById("graph").hidden = true;

  // ---- the rest
  put("skipped-body", data.skipped.length ? data.skipped.map((row) => el("details", { class: "card" },
    el("summary", {}, el("span", { class: "chip" }, row.step), row.reason, el("span", { class: "count" }, some(row.count, "node"))),
    el("p", { class: "mono" }, row.nodes.join(", ") + (row.count > row.nodes.length ? ` and ${(row.count - row.nodes.length).toLocaleString("en")} more` : "")))) : el("p", { class: "card soft" }, "Nothing was skipped."));
  const line = el("pre", { tabindex: "0", "aria-label": "Command" }, data.reproduce.command);
  const copy = el("button", { type: "button", class: "quiet", onclick: async () => {
    try { await navigator.clipboard.writeText(data.reproduce.command); copy.textContent = "Copied"; } catch { getSelection().selectAllChildren(line); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  put("reproduce-body", el("div", { class: "card" }, el("p", { class: "soft" }, data.reproduce.python ? "This run was asked for from Python; the call, its data left out:" : "The command, as it was given:"), line, copy), el("div", { class: "card" }, facts(data.reproduce.facts)),
    data.notes.length && table ? el("div", { class: "card soft" }, el("h3", {}, "What this page leaves out"), list(data.notes)) : null);
  put("made", `Made by Lathe ${data.version}. This file holds everything it shows and asks the network for nothing.`);
  const sections = [["overview", "Overview"], ["steps", "Steps"], ["layers", "Layers"], ["layer", "One layer"], ["graph", "Graph"], ["skipped", "Skipped"], ["reproduce", "Reproduce"]].filter(([id]) => !document.getElementById(id).hidden);
  put("places", sections.map(([id, title]) => el("a", { href: `#${id}` }, title)));
  Lathe.themes();

  const next = () => {
    const draw = steps.shift();
    if (draw) { draw(); setTimeout(next); } else document.documentElement.dataset.drawn = String(Math.round(performance.now() - started));
  };
  setTimeout(next);
})();

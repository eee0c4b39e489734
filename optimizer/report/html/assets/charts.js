"use strict";
// Charts, drawn by Plotly. Each has a name and a sentence for readers who do not see it.
Lathe.layout = (more = {}) => {
  const line = Lathe.colour("line"), soft = Lathe.colour("soft"), card = Lathe.colour("card");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { color: soft }, tickangle: 0, fixedrange: true, automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  const title = (given) => given && given.title ? { title: { text: given.title, font: { size: 13, color: soft }, standoff: 12 } } : {};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: Lathe.colour("text") },
    margin: { l: 12, r: 14, t: 10, b: 12 }, dragmode: false, bargap: 0.3, bargroupgap: 0.08, showlegend: false,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: soft }, itemclick: false, itemdoubleclick: false },
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: Lathe.colour("text"), size: 13 }, align: "left" },
    xaxis: { ...axis, ...xaxis, ...title(xaxis) }, yaxis: { ...axis, ...yaxis, ...title(yaxis) }, ...rest,
  };
};

// A figure whose picture `draw` makes anew for each theme and width: it returns {traces, layout}.
Lathe.figure = ({ label, caption, height = 260, draw, onclick }) => {
  const plot = Lathe.el("div", { class: "plot", role: "img", "aria-label": label });
  const figure = Lathe.el("figure", {}, plot, caption && Lathe.el("figcaption", {}, caption));
  let heard = false;
  const paint = () => {
    if (!plot.isConnected) return;
    const { traces, layout } = draw();
    const tall = typeof height === "function" ? height() : height;
    plot.style.height = `${tall}px`;
    Plotly.react(plot, traces, Lathe.layout({ height: tall, ...layout }), { displayModeBar: false, responsive: true, doubleClick: false, showTips: false });
    if (onclick && !heard) { heard = true; plot.on("plotly_click", (event) => onclick(event.points[0])); }
  };
  figure.paint = paint;
  return figure;
};

Lathe.equalTick = (values) => {
  const { equal } = Lathe.data.tradeoff, ticks = Lathe.ticks(Math.max(...values.filter((value) => value < equal), 1), 4).filter((tick) => tick < equal - 6);
  return { tickvals: [...ticks, equal], ticktext: [...ticks.map(String), "equal"] };
};
Lathe.tradeoff = () => {
  const { points, title } = Lathe.data.tradeoff;
  const steps = points.filter((point) => point.kind === "step"), targets = points.filter((point) => point.kind === "target");
  // A step has its own number, the original 0, targets have letters.
  const numbers = new Map([...steps.map((point) => [point, String(parseInt(point.label, 10) || 0)]), ...targets.map((point, index) => [point, String.fromCharCode(65 + (index % 26))])]);
  const text = (list) => list.map((point) => `<b>${Lathe.plain(point.label)}</b><br>${Lathe.plain(point.text)}, ${Lathe.size(point.size)}`);
  const draw = () => {
    // Points that lie on each other have one label, with the numbers of all.
    const across = Math.max(...points.map((point) => point.size)), up = Math.max(...points.map((point) => point.value)) - Math.min(...points.map((point) => point.value)) || 1;
    const groups = [];
    for (const point of points) {
      const near = groups.find(([first]) => Math.abs(first.size - point.size) < (Lathe.narrow() ? 0.08 : 0.03) * across && Math.abs(first.value - point.value) < 0.07 * up);
      if (near) near.push(point); else groups.push([point]);
    }
    const label = (point) => { const group = groups.find(([first]) => first === point); return group ? group.map((one) => numbers.get(one)).join(", ") : ""; };
    const series = (list, more) => ({
      x: list.map((point) => point.size), y: list.map((point) => point.value), hovertext: text(list), hoverinfo: "text", type: "scatter",
      text: list.map(label), textposition: "top center", textfont: { color: Lathe.colour("text"), size: 13 }, cliponaxis: false, ...more,
    });
    const traces = [series(steps, { mode: "lines+markers+text", line: { color: Lathe.colour("before"), width: 2 }, marker: { size: 11, color: steps.map((_, index) => Lathe.colour(index ? "after" : "before")), line: { width: 2, color: Lathe.colour("card") } } })];
    if (targets.length) traces.push(series(targets, { mode: "markers+text", marker: { size: 12, symbol: "diamond-open", color: Lathe.colour("accent"), line: { width: 2 } } }));
    const sizes = points.map((point) => point.size), values = points.map((point) => point.value), wide = Math.max(...sizes) / Math.min(...sizes) > 12;
    const span = Math.max(Math.max(...values) - Math.min(...values), 0.5);
    const most = Lathe.narrow() ? 3 : 6, ticks = wide ? Lathe.logTicks(Math.min(...sizes) / 1.6, Math.max(...sizes) * 1.6, most) : Lathe.ticks(Math.max(...sizes) * 1.14, most);
    const range = wide ? [Math.log10(Math.min(...sizes) / 1.6), Math.log10(Math.max(...sizes) * 1.6)] : [0, Math.max(...sizes) * 1.14];
    return { traces, layout: {
      xaxis: { title: wide ? "File size (logarithmic)" : "File size", type: wide ? "log" : "linear", range, tickvals: ticks, ticktext: ticks.map(Lathe.size), zeroline: false },
      yaxis: { ...(Lathe.data.tradeoff.equal === null ? {} : Lathe.equalTick(values)), title: Lathe.plain(title), range: [Math.min(...values) - 0.25 * span, Math.max(...values) + 0.25 * span], zeroline: false },
    } };
  };
  const last = steps[steps.length - 1];
  const key = Lathe.el("span", { class: "key" }, points.map((point) => Lathe.el("span", {}, Lathe.el("b", {}, numbers.get(point)), ` ${point.kind === "target" ? `target ${point.label}` : point.label.replace(/^\d+ /, "")}`)));
  return Lathe.figure({ caption: key, label: `${title} against file size: ${points.length} points, from ${steps[0].text} at ${Lathe.size(steps[0].size)} to ${last.text} at ${Lathe.size(last.size)}`, height: 340, draw });
};

Lathe.sensitivity = (step) => (Lathe.data.sensitive.length > 1 ? `Sensitivity to ${step}` : "Sensitivity");
// What can be drawn per layer: grouped bars of before and after, or one bar.
Lathe.measures = [
  { key: "bytes", title: "Bytes", axis: "Weight bytes", get: (row) => row.bytes, show: Lathe.size },
  { key: "macs", title: "MACs", axis: "Multiply-accumulates per sample", get: (row) => row.macs, show: Lathe.count },
  { key: "zeros", title: "Sparsity", axis: "Zeros among the weights (%)", get: (row) => row.zeros.map((share) => (share === null ? null : 100 * share)), show: (value) => `${value.toFixed(1)} %` },
  { key: "sqnr", title: "Error", axis: "SQNR of the layer's output (dB); higher is nearer to the original", get: (row) => [row.sqnr], show: (value) => `${value.toFixed(1)} dB` },
  ...Lathe.data.sensitive.map((step) => ({ key: `sensitivity ${step}`, title: Lathe.sensitivity(step), axis: `SQNR of the outputs with this layer alone changed by ${Lathe.plain(step)} (dB); lower is more sensitive`, get: (row) => [row.sensitivity[step] ?? null], show: (value) => `${value.toFixed(1)} dB` })),
  { key: "ms", title: "Milliseconds", axis: "Milliseconds in ONNX Runtime, one sample, before lowering", get: (row) => row.ms, show: Lathe.ms },
].filter((measure) => Lathe.data.layers.some((row) => measure.get(row).some((value) => value)));

Lathe.bars = (measure, rows, choose) => {
  const lying = rows.length <= 28;
  const draw = () => {
    const names = rows.map((row) => row.name), places = names.map((_, index) => index), double = measure.get(rows[0]).length === 2;
    const series = (side) => {
      const values = rows.map((row) => measure.get(row)[side] ?? null);
      const after = double ? side === 1 : true;
      const colours = measure.key === "sqnr" ? rows.map((row) => Lathe.colour(`edge${Lathe.grade(row)}`)) : Lathe.colour(after ? "after" : "before");
      const hover = rows.map((row, index) => `<b>${Lathe.plain(Lathe.short(row.name, 60))}</b><br>${double ? (after ? "after: " : "before: ") : ""}${values[index] === null ? "not known" : measure.show(values[index])}`);
      const common = { name: after ? "after" : "before", hovertext: hover, hoverinfo: "text" };
      if (rows.length > 600) return { ...common, type: "scatter", mode: "lines", line: { color: Lathe.colour(after ? "after" : "before"), width: 1.3, shape: "hv" }, x: places, y: values };
      return { ...common, type: "bar", marker: { color: colours }, orientation: lying ? "h" : "v", [lying ? "y" : "x"]: places, [lying ? "x" : "y"]: values };
    };
    const traces = double ? [series(0), series(1)] : [series(0)];
    const letters = Lathe.narrow() ? 15 : 34;
    const known = rows.flatMap((row) => measure.get(row)).filter((value) => value), top = Math.max(...known, 0);
    const ticks = Lathe.ticks(top || 1, Lathe.narrow() ? 3 : 6);
    const scale = ["bytes", "macs"].includes(measure.key) ? { tickvals: ticks, ticktext: ticks.map((value) => (value ? measure.show(value) : "0")) } : {};
    const layers = lying
      ? { tickvals: places, ticktext: names.map((name) => Lathe.plain(Lathe.short(name, letters))), autorange: "reversed", showgrid: false, zeroline: false, ticks: "" }
      : { title: `Layers in ${Lathe.narrow() ? "order" : "the order of the network"} (${rows.length.toLocaleString("en")})`, showgrid: false, showticklabels: false, zeroline: false };
    return { traces, layout: { showlegend: double, barmode: "group", hovermode: "closest", margin: { l: 12, r: 14, t: 34, b: 12 }, [lying ? "xaxis" : "yaxis"]: { title: measure.axis, rangemode: "tozero", nticks: Lathe.narrow() ? 4 : 7, ...scale }, [lying ? "yaxis" : "xaxis"]: layers } };
  };
  return Lathe.figure({ label: `Bars of ${measure.title} for ${rows.length} layers; the table below has the same figures`, height: () => (lying ? 95 + rows.length * (measure.get(rows[0]).length === 2 ? 27 : 22) : 360), draw, onclick: (point) => choose(rows[point.pointNumber].name) });
};

Lathe.lines = (places, top) => places.map((place) => ({ type: "line", x0: place, x1: place, yref: "paper", y0: 0, y1: 1, line: { color: Lathe.colour("edge3"), width: 1.5, dash: "dash" }, layer: "above" }));
Lathe.marks = (places, text) => places.map((place, index) => ({ x: place, y: 1, yref: "paper", yanchor: "bottom", xanchor: index ? "right" : "left", text, showarrow: false, font: { size: 11, color: Lathe.colour("bad") } }));
// The outline of a histogram, from edge to edge: an empty bin lies on the ground (`floor`, where an axis has no 0).
Lathe.area = (entry, values, name, colour, before, floor = 0) => {
  const edges = Array.from({ length: values.length + 1 }, (_, index) => entry.low + ((entry.high - entry.low) * index) / values.length);
  const text = values.map((value, index) => `${Number((100 * value).toPrecision(3))} % from ${Lathe.number(edges[index])} to ${Lathe.number(edges[index + 1])}`);
  return {
    type: "scatter", mode: "lines", x: [edges[0], ...edges], y: [floor, ...values.map((value) => 100 * value || floor), floor], text: ["", ...text, ""], name, line: { shape: "hv", color: colour, width: before ? 1 : 1.8 },
    fill: before ? "tozeroy" : "none", fillcolor: `color-mix(in srgb, ${colour} 35%, transparent)`, hovertemplate: "%{text}<extra></extra>",
  };
};

Lathe.weightChart = (series) => {
  const draw = () => {
    const traces = [], shades = ["after", "edge2", "edge1"];
    let clip = null, place = 0;
    for (const one of series) {
      const before = one.label === "before", colour = Lathe.colour(before ? "before" : shades[place % shades.length]);
      if (!before) place += 1;
      if (one.centroids) {
        const kept = one.centroids.map((value, index) => [value, one.centroid_shares[index]]).filter(([value]) => value !== 0);
        traces.push({ type: "bar", x: kept.map(([value]) => value), y: kept.map(([, share]) => 100 * share), width: (one.high - one.low) / 160, marker: { color: colour }, name: `${one.label}: ${one.centroids.length} centroids`, hovertemplate: "centroid %{x:.4g}: %{y:.3g} %<extra></extra>" });
      } else traces.push(Lathe.area(one, one.shares, one.label, colour, before));
      if (one.clip) clip = one.clip;
    }
    const inside = clip && clip.map((end) => Math.max(-1e30, Math.min(1e30, end)));
    return { traces, layout: { showlegend: true, margin: { l: 12, r: 14, t: 34, b: 12 }, xaxis: { title: "Weight (zeros left out)", zeroline: false }, yaxis: { title: "Share of all weights (%)", rangemode: "tozero" }, shapes: inside ? Lathe.lines(inside) : [], bargap: 0 } };
  };
  return Lathe.figure({ label: `Histogram of the weights: ${series.map((one) => `${one.label}, ${Lathe.percent(one.zeros)} zeros`).join("; ")}`, height: 270, draw });
};

Lathe.activationChart = (entry) => {
  const known = [...entry.before, ...entry.after].filter((share) => share).map((share) => 100 * share), floor = Math.min(...known, 100) / 2;
  const draw = () => ({
    traces: [Lathe.area(entry, entry.before, "before", Lathe.colour("before"), true, floor), Lathe.area(entry, entry.after, "after", Lathe.colour("after"), false, floor)],
    layout: { showlegend: true, margin: { l: 12, r: 14, t: 34, b: 12 }, xaxis: { title: "Output of the layer", zeroline: false }, yaxis: { title: "Share (%), logarithmic", type: "log", range: [Math.log10(floor), Math.log10(1.4 * Math.max(...known, floor))], nticks: 4, exponentformat: "none" }, shapes: entry.clip ? Lathe.lines(entry.clip) : [] },
  });
  return Lathe.figure({ label: `Histogram of the layer's output from ${Lathe.number(entry.low)} to ${Lathe.number(entry.high)}`, height: 270, draw });
};

Lathe.spectrumChart = (entry) => {
  const draw = () => ({
    traces: [
      { type: "bar", x: entry.places, y: entry.values, marker: { color: entry.places.map((place) => Lathe.colour(place <= entry.rank ? "after" : "before")) }, name: "singular value (largest: 1)", hovertemplate: "singular value %{x}: %{y:.3g}<extra></extra>" },
      { type: "scatter", mode: "lines", x: entry.places, y: entry.energy, line: { color: Lathe.colour("edge2"), width: 2 }, name: "energy up to here", hovertemplate: "energy of the first %{x}: %{y:.1%}<extra></extra>" },
    ],
    layout: { showlegend: true, margin: { l: 12, r: 14, t: 34, b: 12 }, bargap: 0.15, xaxis: { title: "Singular value, largest first", zeroline: false }, yaxis: { title: "Share", range: [0, 1.04] }, shapes: Lathe.lines([entry.rank + 0.5]) },
  });
  return Lathe.figure({ label: `Singular values of the weight${entry.of ? ` by its ${entry.of}` : ""}; rank ${entry.rank} of ${entry.full} was chosen`, height: 270, draw });
};

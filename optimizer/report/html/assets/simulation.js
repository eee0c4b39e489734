"use strict";
// A chart for strong and one for weak scaling, both axes logarithmic, drawn anew for another theme.
(() => {
  const { charts } = JSON.parse(document.getElementById("data").textContent), place = document.getElementById("charts");
  const colours = ["#3b82f6", "#d97706", "#10b981", "#ef4444", "#8b5cf6", "#0891b2", "#ec4899", "#65a30d"];
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const plots = charts.map((chart) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), plot = document.createElement("div");
    caption.textContent = chart.title;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${chart.title}: milliseconds a step against machines; the tables below have the same figures`);
    figure.append(caption, plot);
    place.append(figure);
    return [chart, plot];
  });
  const draw = () => {
    const style = getComputedStyle(document.body), ink = style.color;
    for (const [chart, plot] of plots) {
      const traces = chart.lines.map((line, index) => ({
        type: "scatter", mode: "lines+markers", name: escaped(line.name), x: line.machines, y: line.ms, line: { color: colours[index % colours.length] },
        hovertext: line.machines.map((count, point) => `${count} machines: ${Number(line.ms[point].toPrecision(3))} ms<br>${escaped(line.how[point])}`), hoverinfo: "text+name",
      }));
      const counts = [...new Set(chart.lines.flatMap((line) => line.machines))].sort((one, other) => one - other);
      const step = Math.ceil(counts.length / (innerWidth < 700 ? 5 : 10)), shown = counts.filter((_, index) => index % step === 0);
      const axis = { type: "log", gridcolor: "#8884", zeroline: false, fixedrange: true, automargin: true };
      Plotly.react(plot, traces, {
        height: 380, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: style.fontFamily, size: 13 }, dragmode: false,
        margin: { l: 12, r: 14, t: 10, b: 12 }, showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        xaxis: { ...axis, title: { text: "Machines" }, tickvals: shown, ticktext: shown.map(String) }, yaxis: { ...axis, title: { text: "Milliseconds a step" }, exponentformat: "none" },
      }, { displayModeBar: false, responsive: true });
    }
  };
  draw();
  document.documentElement.dataset.drawn = "";
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();

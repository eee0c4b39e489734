"use strict";
// The two graphs: cytoscape draws them, dagre lays them out.
Lathe.LONG = 6; // An edge over more ranks does not take part in the layout: dagre puts a node of its own at each rank.

// Heights of boxes in ranks: the longest way from an input. Boxes come behind their sources.
Lathe.ranks = (graph) => {
  const ranks = new Array(graph.boxes.length).fill(0), into = graph.boxes.map(() => []);
  for (const [from, to] of graph.edges) into[to].push(from);
  graph.boxes.forEach((_, place) => { for (const from of into[place]) ranks[place] = Math.max(ranks[place], ranks[from] + 1); });
  return ranks;
};

Lathe.arrange = (graph, height) => {
  const plan = new dagre.graphlib.Graph();
  plan.setGraph({ rankdir: "TB", nodesep: 26, ranksep: 26, ranker: "longest-path" });
  plan.setDefaultEdgeLabel(() => ({}));
  const ranks = Lathe.ranks(graph);
  graph.boxes.forEach((box, place) => plan.setNode(String(place), { width: 176, height: height(box) }));
  for (const [from, to] of graph.edges) if (ranks[to] - ranks[from] <= Lathe.LONG) plan.setEdge(String(from), String(to));
  dagre.layout(plan);
  return graph.boxes.map((_, place) => { const { x, y } = plan.node(String(place)); return { x, y }; });
};

Lathe.graph = (place, graph, { name, choose }) => {
  const rows = new Map(Lathe.data.layers.map((row) => [row.name, row])), open = new Set();
  const expanded = (box) => open.has(box.id) && box.members.length > 1;
  const height = (box) => (expanded(box) ? 52 + 15 * (box.members.length + (box.more ? 1 : 0)) : box.layer || box.op === "input" || box.op === "output" ? 52 : 30);
  const row = (box) => (box.layer && !box.part ? rows.get(box.layer) : undefined);
  const label = (box) => {
    if (box.op === "input" || box.op === "output") return `${box.op}\n${Lathe.short(box.id.slice(box.op.length + 1), 24)}`;
    const lines = box.layer ? [`${box.op}${row(box) ? `  ${Lathe.decibels(row(box)).replace("–", "")}` : ""}`, Lathe.short(box.id, 24)] : [box.op];
    if (expanded(box)) { lines.push("", ...box.members.map(([name, op]) => (box.inside.length ? `${op}  ${Lathe.short(name, 18)}` : op))); if (box.more) lines.push(`and ${box.more} more`); }
    else if (box.members.length > 1) lines[0] += `  +${box.members.length - 1}`;
    if (box.far) lines[0] += `  (${box.far} from further up)`;
    return lines.join("\n");
  };
  const style = () => {
    const text = Lathe.colour("text"), edge = Lathe.colour("before");
    return [
      { selector: "node", style: { shape: "round-rectangle", width: 176, height: "data(height)", label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "font-size": 12, "line-height": 1.25, "font-family": getComputedStyle(document.body).fontFamily, color: text, "border-width": 1.5, "background-color": Lathe.colour("card"), "border-color": edge } },
      ...Lathe.grades.map(([grade]) => ({ selector: `node[grade = "${grade}"]`, style: { "background-color": Lathe.colour(`err${grade}`), "border-color": Lathe.colour(`edge${grade}`) } })),
      { selector: "node[kind = 'join']", style: { width: 120, "background-color": Lathe.colour("card"), color: Lathe.colour("soft"), "border-color": Lathe.colour("line") } },
      { selector: "node[kind = 'end']", style: { "background-color": Lathe.colour("accent-soft"), "border-color": Lathe.colour("accent") } },
      { selector: "node.chosen", style: { "border-width": 4, "border-color": Lathe.colour("accent") } },
      { selector: "edge", style: { width: 1.5, "line-color": edge, "target-arrow-color": edge, "target-arrow-shape": "triangle", "arrow-scale": 0.8, "curve-style": "bezier" } },
      { selector: "edge[long > 0]", style: { "curve-style": "unbundled-bezier", "control-point-distances": "data(long)", "control-point-weights": 0.5, opacity: 0.35 } },
    ];
  };
  const ranks = Lathe.ranks(graph), places = Lathe.arrange(graph, height);
  const elements = graph.boxes.map((box, index) => ({
    data: { id: String(index), label: label(box), height: height(box), grade: Lathe.grade(row(box)), kind: box.layer ? "layer" : box.op === "input" || box.op === "output" ? "end" : "join" }, position: places[index],
  }));
  for (const [index, [from, to]] of graph.edges.entries()) {
    const span = ranks[to] - ranks[from];
    elements.push({ data: { id: `e${index}`, source: String(from), target: String(to), long: span > Lathe.LONG ? 60 + 8 * Math.min(span, 40) : 0 } });
  }
  const cy = cytoscape({ container: place, elements, style: style(), layout: { name: "preset", fit: false }, hideEdgesOnViewport: graph.edges.length > 1000, userZoomingEnabled: true, minZoom: 0.02, maxZoom: 2, autoungrabify: true, boxSelectionEnabled: false, textureOnViewport: graph.boxes.length > 400, pixelRatio: "auto" });
  // The wheel scrolls the page; with Ctrl, or two fingers, it zooms.
  place.addEventListener("wheel", (event) => { if (!event.ctrlKey) event.stopImmediatePropagation(); }, { capture: true });
  const begin = () => {
    const across = places.map(({ x }) => x), left = Math.min(...across) - 90, right = Math.max(...across) + 90, wide = place.clientWidth;
    const zoom = Math.max(Math.min(1, (wide - 24) / (right - left)), Lathe.narrow() ? 0.55 : 0.85), middle = (right - left) * zoom < wide ? (left + right) / 2 : places.slice(0, 8).reduce((sum, { x }) => sum + x, 0) / Math.min(places.length, 8);
    cy.viewport({ zoom, pan: { x: wide / 2 - middle * zoom, y: 16 - (Math.min(...places.map(({ y }) => y)) - 26) * zoom } });
  };
  const expand = (id) => {
    const box = graph.boxes[id];
    if (!open.delete(box.id)) open.add(box.id);
    const moved = Lathe.arrange(graph, height);
    cy.batch(() => graph.boxes.forEach((one, index) => { const node = cy.getElementById(String(index)); node.position(moved[index]); node.data({ label: label(one), height: height(one) }); }));
  };
  cy.on("tap", "node", (event) => { const box = graph.boxes[event.target.id()]; expand(Number(event.target.id())); if (box.layer) choose(box.layer); });
  begin();
  Lathe.redraw.push(() => cy.style(style()));
  return {
    name, cy,
    zoom: (factor) => cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } }),
    fit: () => cy.fit(undefined, 16), begin,
    expand: (layer) => { const id = graph.boxes.findIndex((box) => box.layer === layer || box.inside.includes(layer)); if (id >= 0) expand(id); },
    show: (layer) => {
      cy.nodes(".chosen").removeClass("chosen");
      const found = cy.nodes().filter((node) => graph.boxes[node.id()].layer === layer || graph.boxes[node.id()].inside.includes(layer));
      found.addClass("chosen");
      if (found.length) cy.center(found[0]);
    },
  };
};

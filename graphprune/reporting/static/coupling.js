"use strict";
// The coupling graph: layers in columns, one colour for layers that lose the same channels, and a panel about what is chosen.

const coupling = {
  // Long models are one long column: it is cut into several side by side, so that the whole has the shape of the page.
  wrap(graph, width, height) {
    const box = graph.nodes().boundingBox();
    if (box.h <= 1.5 * box.w * (height / width)) return;
    const count = Math.max(1, Math.round(Math.sqrt((box.h * width) / ((box.w + 60) * height))));
    const tall = box.h / count + 1;
    graph.nodes().positions((node) => {
      const { x, y } = node.position();
      const column = Math.floor((y - box.y1) / tall);
      return { x: x + column * (box.w + 60), y: y - column * tall };
    });
  },

  style(tints) {
    const colour = (name) => theme.colour(name);
    const [ink, quiet, line, wash, panel] = ["ink", "quiet", "line", "wash", "panel"].map(colour);
    return [
      { selector: "node", style: { label: "data(text)", shape: "round-rectangle", width: "data(wide)", height: 26, "background-color": wash, "border-width": 1.5, "border-color": quiet, color: ink, "font-size": 11, "text-valign": "center", "text-halign": "center", "font-family": "system-ui, sans-serif" } },
      { selector: "node[kind = 'join']", style: { shape: "round-rectangle", height: 18, "background-color": panel, "border-width": 1, "border-color": line, color: quiet, "font-size": 10 } },
      { selector: "node[kind = 'input'], node[kind = 'output']", style: { "background-color": panel, "border-style": "dotted", color: quiet } },
      { selector: "node[?frozen]", style: { "border-style": "dashed" } },
      ...tints.map((tint, place) => ({ selector: `node[tint = ${place}]`, style: { "border-color": tint, "border-width": 2.5 } })),
      { selector: "edge", style: { width: 1.2, "line-color": line, "curve-style": "bezier", "target-arrow-shape": "triangle", "target-arrow-color": line, "arrow-scale": 0.7 } },
      { selector: ".dim", style: { opacity: 0.22 } },
      { selector: "node.member", style: { "background-color": colour("pale"), opacity: 1 } },
      { selector: "node.chosen", style: { "background-color": colour("blue"), color: panel, "border-color": ink } },
    ];
  },
};

function drawCoupling(root) {
  const data = JSON.parse(document.getElementById(root.dataset.source).textContent);
  const { groups } = data;
  const [plot, panel, search, names, select] = [".plot", ".panel", "input", "datalist", "select"].map((found) => root.querySelector(found));
  const home = new Map(); // a folded layer is found at the layer before it
  for (const node of data.nodes) for (const name of [node.id, ...node.folded]) home.set(name, node.id);
  const shared = groups.map((group, place) => ({ place, count: new Set(Object.keys(group.layers).map((name) => home.get(name))).size }))
    .filter(({ place, count }) => groups[place].reason === null && count > 2).sort((a, b) => b.count - a.count);
  const tintOf = new Map(shared.map(({ place }, rank) => [place, rank % 8]));

  const text = (node) => {
    const [before, after] = node.width ?? [0, 0];
    return `${short(node.label, 26)}${after < before ? `  ${after}/${before}` : ""}`;
  };
  const graph = cytoscape({
    container: plot,
    elements: [
      ...data.nodes.map((node) => ({ data: { id: node.id, kind: node.kind, text: text(node), wide: Math.max(30, 6.3 * text(node).length + 14), tint: node.makes.map((place) => tintOf.get(place)).find((tint) => tint !== undefined) ?? -1, frozen: node.makes.some((place) => groups[place].reason) ? 1 : 0 } })),
      ...data.edges.map(([source, target]) => ({ data: { source, target } })),
    ],
    style: coupling.style(theme.tints()),
    layout: { name: "dagre", rankDir: "TB", nodeSep: 14, rankSep: 22, edgeSep: 8, animate: false, fit: false },
    minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false, autoungrabify: true, userZoomingEnabled: true,
  });
  coupling.wrap(graph, plot.clientWidth, plot.clientHeight);
  const whole = () => graph.fit(undefined, 16);
  whole();
  theme.drawings.push(() => graph.style(coupling.style(theme.tints())));
  new ResizeObserver(() => graph.resize()).observe(plot);

  const element = (tag, content, kind) => {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content;
    if (kind) made.className = kind;
    return made;
  };
  const layerList = (layers) => {
    const list = element("ul");
    for (const name of Object.keys(layers)) {
      const item = list.appendChild(element("li"));
      const button = item.appendChild(element("button", name));
      button.type = "button";
      button.title = layers[name].join(", ");
      button.addEventListener("click", () => choose(name));
    }
    return list;
  };
  const named = (made, name, place) => {
    made.classList.add("named");
    if (tintOf.has(place)) made.appendChild(element("span", undefined, "swatch")).style.background = theme.tints()[tintOf.get(place)];
    made.appendChild(element("span", name));
    return made;
  };
  const describe = (place, what) => {
    const group = groups[place];
    const part = document.createDocumentFragment();
    named(part.appendChild(element("h4")), `${what}${group.reason ? "frozen channels" : `group ${group.name}`}`, place);
    if (group.reason) part.appendChild(element("p", group.reason, "why"));
    const each = group.channels > 1 ? `, ${group.channels} channels each` : "";
    const kept = group.kept === null ? "" : `, ${group.kept} kept`;
    part.appendChild(element("p", `${group.units} units${each}${kept}`));
    const layers = Object.keys(group.layers).length;
    if (layers > 6) {
      const more = part.appendChild(element("details"));
      more.append(element("summary", `${layers} layers`), layerList(group.layers));
    } else part.appendChild(layerList(group.layers));
    return part;
  };
  const highlight = (places, chosen) => {
    graph.batch(() => {
      graph.elements().removeClass("dim member chosen");
      if (!places) return;
      graph.elements().addClass("dim");
      for (const place of places) for (const name of Object.keys(groups[place].layers)) graph.getElementById(home.get(name) ?? "").removeClass("dim").addClass("member");
      if (chosen) graph.getElementById(chosen).removeClass("dim").addClass("chosen");
    });
  };
  const start = () => {
    highlight(null);
    const frozen = groups.filter((group) => group.reason).length;
    panel.replaceChildren(element("h3", "Nothing chosen"),
      element("p", `Of ${groups.length - frozen} prunable groups ${shared.length} couple${shared.length === 1 ? "s" : ""} three layers or more, and ${shared.length === 1 ? "has" : "have"} a colour. A dashed border marks layers whose outputs are frozen.`));
    if (shared.length) panel.append(element("h4", "Widest coupling"));
    const list = panel.appendChild(element("ul"));
    for (const { place, count } of shared.slice(0, 8)) {
      const button = list.appendChild(element("li")).appendChild(element("button"));
      button.type = "button";
      named(button, `${groups[place].name} (${count} layers)`, place);
      button.addEventListener("click", () => chooseGroup(place));
    }
  };
  const chooseGroup = (place) => {
    select.value = String(place);
    search.value = "";
    highlight([place]);
    panel.replaceChildren(element("h3", groups[place].reason ? "Frozen channels" : "Group of channels"), describe(place, ""));
  };
  const choose = (name) => {
    const node = data.nodes.find((one) => one.id === home.get(name));
    if (!node) return false;
    search.value = name;
    select.value = "";
    const made = node.makes.filter((place) => groups[place].reason === null);
    highlight(made.length ? made : node.reads.filter((place) => groups[place].reason === null), node.id);
    const folded = node.folded.length ? `with ${node.folded.join(", ")}` : "";
    panel.replaceChildren(element("h3", node.id));
    if (folded) panel.append(element("p", folded));
    if (!node.makes.length && !node.reads.length) panel.append(element("p", "It has no channels of its own."));
    for (const place of node.makes) panel.append(describe(place, "Makes "));
    for (const place of node.reads) panel.append(describe(place, "Reads "));
    graph.animate({ center: { eles: graph.getElementById(node.id) }, zoom: Math.max(graph.zoom(), 0.8) }, { duration: 0 });
    return true;
  };

  for (const name of home.keys()) names.append(new Option(name, name));
  select.add(new Option("none", ""));
  groups.forEach((group, place) => select.add(new Option(group.reason ? `frozen: ${short(Object.keys(group.layers)[0] ?? group.name, 30)}` : group.name, String(place))));
  select.addEventListener("change", () => (select.value === "" ? start() : chooseGroup(Number(select.value))));
  const find = () => {
    const wanted = search.value.trim();
    if (!wanted) return start();
    const every = [...home.keys()];
    const near = every.find((name) => name === wanted) ?? every.find((name) => name.includes(wanted));
    if (near === undefined || !choose(near)) panel.replaceChildren(element("h3", "No such layer"), element("p", `No layer has ${wanted} in its name.`));
  };
  search.addEventListener("change", find);
  search.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  graph.on("tap", "node", (event) => choose(event.target.id()));
  graph.on("tap", (event) => { if (event.target === graph) { search.value = ""; select.value = ""; start(); } });
  for (const button of root.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => graph.zoom({ level: graph.zoom() * Number(button.dataset.zoom), renderedPosition: { x: plot.clientWidth / 2, y: plot.clientHeight / 2 } }));
  }
  root.querySelector("[data-fit]").addEventListener("click", whole);
  start();
}

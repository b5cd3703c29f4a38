"use strict";
// The coupling graph: layers in columns, one colour for layers that lose the same channels, and a panel about what is chosen.

const coupling = {
  // Long models are one long column: it is cut into several side by side, so that the whole has the shape of the page. One that can
  // be read as it is stays.
  wrap(graph, width, height) {
    const box = graph.nodes().boundingBox();
    if (0.7 * box.h <= height || box.h <= 1.5 * box.w * (height / width)) return;
    const count = Math.max(1, Math.round(Math.sqrt((box.h * width) / ((box.w + 60) * height))));
    const tall = box.h / count + 1;
    graph.nodes().positions((node) => {
      const { x, y } = node.position();
      const column = Math.floor((y - box.y1) / tall);
      return { x: x + column * (box.w + 60), y: y - column * tall };
    });
  },

  // Densely connected layers have edges by the square: the last one decides where a layer stands, and the others are arcs.
  far(graph) {
    const [nodes, edges] = [graph.nodes().length, graph.edges().length];
    if (edges <= Math.max(200, 2.5 * nodes)) return graph.collection();
    return graph.collection(graph.nodes().toArray().flatMap((node) => node.incomers("edge").toArray().slice(0, -1)));
  },

  style(tints) {
    const colour = (name) => theme.colour(name);
    const [ink, quiet, line, wash, panel] = ["ink", "quiet", "line", "wash", "panel"].map(colour);
    return [
      { selector: "node", style: { label: "data(text)", shape: "round-rectangle", width: "data(wide)", height: 26, "background-color": wash, "border-width": 1.5, "border-color": quiet, color: ink, "font-size": 11, "text-valign": "center", "text-halign": "center", "font-family": "system-ui, sans-serif" } },
      { selector: "node[kind = 'join']", style: { shape: "round-rectangle", height: 18, "background-color": panel, "border-width": 1, "border-color": line, color: quiet, "font-size": 10 } },
      { selector: "node[kind = 'input'], node[kind = 'output']", style: { "background-color": panel, "border-style": "dotted", color: quiet } },
      { selector: "node[kind = 'module']", style: { height: 32, "border-style": "double", "border-width": 4, "font-weight": 600 } },
      { selector: "node[?frozen]", style: { "border-style": "dashed" } },
      ...tints.map((tint, place) => ({ selector: `node[tint = ${place}]`, style: { "border-color": tint, "border-width": (node) => (node.data("kind") === "module" ? 4 : 2.5) } })),
      { selector: "edge", style: { width: 1.2, "line-color": line, "curve-style": "bezier", "target-arrow-shape": "triangle", "target-arrow-color": line, "arrow-scale": 0.7 } },
      { selector: "edge.far", style: { width: 0.6, "curve-style": "unbundled-bezier", "control-point-distances": 70, "source-endpoint": "inside-to-node", "target-endpoint": "inside-to-node", "target-arrow-shape": "none" } },
      { selector: ".dim", style: { opacity: 0.35 } },
      { selector: "node.member", style: { "background-color": colour("pale"), opacity: 1 } },
      { selector: "node.chosen", style: { "background-color": colour("blue"), color: panel, "border-color": ink } },
    ];
  },
};

function drawCoupling(root) {
  const data = JSON.parse(document.getElementById(root.dataset.source).textContent);
  const { groups } = data;
  const [plot, panel, search, names, select] = [".plot", ".panel", "input", "datalist", "select"].map((found) => root.querySelector(found));
  const byId = new Map(data.nodes.map((node) => [node.id, node]));
  const home = new Map(); // a folded layer is found at the layer before it
  for (const node of data.nodes) for (const name of [node.id, ...node.folded]) home.set(name, node.id);
  const inside = new Map(); // nodes by the modules around them
  for (const node of data.nodes) for (const box of node.within) inside.set(box, [...(inside.get(box) ?? []), node]);
  let open = new Set(data.open); // modules that are drawn as what is in them
  const shown = (node) => node.within.find((box) => !open.has(box)) ?? node.id;
  const shared = groups.map((group, place) => ({ place, count: new Set(Object.keys(group.layers).map((name) => home.get(name))).size }))
    .filter(({ place, count }) => groups[place].reason === null && count > 2).sort((a, b) => b.count - a.count);
  const tintOf = new Map(shared.map(({ place }, rank) => [place, rank % 8]));

  const text = (node) => {
    const [before, after] = node.width ?? [0, 0];
    return `${short(node.label, 26)}${after < before ? `  ${after}/${before}` : ""}`;
  };
  const drawn = (id, kind, label, makes, frozen) => {
    const widest = shared.find(({ place }) => makes.includes(place));
    return { data: { id, kind, text: label, wide: Math.max(30, (kind === "module" ? 7 : 6.3) * label.length + 14), tint: widest ? tintOf.get(widest.place) : -1, frozen: frozen ? 1 : 0 } };
  };
  const layers = (nodes) => nodes.filter((node) => node.kind === "layer").reduce((count, node) => count + 1 + node.folded.length, 0);
  const elements = () => {
    const [found, edges] = [new Map(), new Map()];
    for (const node of data.nodes) {
      const id = shown(node);
      if (found.has(id)) continue;
      if (id === node.id) found.set(id, drawn(id, node.kind, text(node), node.makes, node.makes.some((place) => groups[place].reason)));
      else found.set(id, drawn(id, "module", `${short(id, 26)}  (${layers(inside.get(id))})`, inside.get(id).flatMap((one) => one.makes), false));
    }
    for (const [from, to] of data.edges) {
      const [source, target] = [shown(byId.get(from)), shown(byId.get(to))];
      if (source !== target) edges.set(`${source}\n${target}`, { data: { source, target } });
    }
    return [...found.values(), ...edges.values()];
  };
  const graph = cytoscape({
    container: plot, style: coupling.style(theme.tints()),
    minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false, autoungrabify: true, userZoomingEnabled: true,
  });
  const whole = () => graph.fit(undefined, 16);
  const draw = () => {
    graph.batch(() => {
      graph.elements().remove();
      graph.add(elements());
    });
    const far = coupling.far(graph).addClass("far");
    graph.elements().not(far).layout({ name: "dagre", rankDir: "TB", nodeSep: 14, rankSep: 22, edgeSep: 8, animate: false, fit: false }).run();
    coupling.wrap(graph, plot.clientWidth, plot.clientHeight);
    whole();
  };
  const unfold = (boxes, folded) => {
    const before = open.size;
    for (const box of boxes) open.add(box);
    if (folded) for (const box of [folded, ...inside.get(folded).flatMap((node) => node.within.slice(node.within.indexOf(folded)))]) open.delete(box);
    if (open.size !== before) draw();
  };
  draw();
  theme.drawings.push(() => graph.style(coupling.style(theme.tints())));
  new ResizeObserver(() => graph.resize()).observe(plot);

  const element = (tag, content, kind) => {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content;
    if (kind) made.className = kind;
    return made;
  };
  const button = (label, action) => {
    const made = element("button", label);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  };
  const layerList = (layers) => {
    const list = element("ul");
    for (const name of Object.keys(layers)) {
      const made = list.appendChild(element("li")).appendChild(button(name, () => choose(name)));
      made.title = layers[name].join(", ");
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
      for (const place of places) {
        for (const [name, axes] of Object.entries(groups[place].layers)) {
          const owner = byId.get(home.get(name));
          const node = graph.getElementById(owner ? shown(owner) : "").removeClass("dim");
          if (axes.some((axis) => axis.endsWith("[0]"))) node.addClass("member"); // it makes them; others read them
        }
      }
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
      named(list.appendChild(element("li")).appendChild(button("", () => chooseGroup(place))), `${groups[place].name} (${count} layers)`, place);
    }
  };
  const chooseGroup = (place) => {
    select.value = String(place);
    search.value = "";
    highlight([place]);
    panel.replaceChildren(element("h3", groups[place].reason ? "Frozen channels" : "Group of channels"), describe(place, ""));
  };
  const focus = (id) => {
    graph.zoom(Math.max(graph.zoom(), 0.8));
    graph.center(graph.getElementById(id));
  };
  const frame = (nodes) => {
    graph.fit(graph.collection(nodes.map((node) => graph.getElementById(shown(node))).flatMap((one) => one.toArray())), 40);
    if (graph.zoom() > 1.2) graph.zoom({ level: 1.2, renderedPosition: { x: plot.clientWidth / 2, y: plot.clientHeight / 2 } });
  };
  const chooseModule = (box) => {
    const nodes = inside.get(box);
    const depth = nodes[0].within.indexOf(box);
    unfold(nodes[0].within.slice(0, depth));
    search.value = box;
    select.value = "";
    const made = [...new Set(nodes.flatMap((node) => node.makes))].filter((place) => groups[place].reason === null);
    if (open.has(box)) highlight(null);
    else highlight(made, box);
    const opens = button(open.has(box) ? "Close" : "Open", () => (open.has(box) ? unfold([], box) : unfold([box]), chooseModule(box)));
    panel.replaceChildren(element("h3", box), element("p", `${layers(nodes)} layers, which make channels of ${made.length} group${made.length === 1 ? "" : "s"}`), opens, element("h4", "In it"));
    const list = panel.appendChild(element("ul"));
    for (const part of new Set(nodes.map((node) => node.within[depth + 1] ?? node.id))) {
      if (inside.has(part) || byId.get(part).kind === "layer") list.appendChild(element("li")).append(button(part, () => choose(part)));
    }
    if (made.length) panel.append(element("h4", "Groups"));
    const names = panel.appendChild(element("ul"));
    for (const place of made) names.appendChild(element("li")).append(named(button("", () => chooseGroup(place)), groups[place].name, place));
    if (open.has(box)) frame(nodes);
    else focus(box);
    return true;
  };
  const choose = (name) => {
    const node = byId.get(home.get(name));
    if (!node) return inside.has(name) && chooseModule(name);
    unfold(node.within);
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
    const around = node.within[node.within.length - 1];
    if (data.closed && around) panel.append(button(`Up to ${around}`, () => chooseModule(around)));
    focus(node.id);
    return true;
  };

  for (const name of [...home.keys(), ...inside.keys()]) names.append(new Option(name, name));
  select.add(new Option("none", ""));
  groups.forEach((group, place) => select.add(new Option(group.reason ? `frozen: ${short(Object.keys(group.layers)[0] ?? group.name, 30)}` : group.name, String(place))));
  select.addEventListener("change", () => (select.value === "" ? start() : chooseGroup(Number(select.value))));
  const find = () => {
    const wanted = search.value.trim();
    if (!wanted) return start();
    const every = [...home.keys(), ...inside.keys()];
    const near = every.find((name) => name === wanted) ?? every.find((name) => name.includes(wanted));
    if (near === undefined || !choose(near)) panel.replaceChildren(element("h3", "No such layer"), element("p", `No layer has ${wanted} in its name.`));
  };
  search.addEventListener("change", find);
  search.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  graph.on("tap", "node", (event) => {
    const id = event.target.id();
    if (event.target.hasClass("chosen") && inside.has(id)) unfold([id]);
    choose(id);
  });
  graph.on("tap", (event) => { if (event.target === graph) { search.value = ""; select.value = ""; start(); } });
  for (const button of root.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => graph.zoom({ level: graph.zoom() * Number(button.dataset.zoom), renderedPosition: { x: plot.clientWidth / 2, y: plot.clientHeight / 2 } }));
  }
  root.querySelector("[data-fit]").addEventListener("click", whole);
  const closing = root.querySelector("[data-modules]");
  closing.hidden = !data.closed;
  closing.addEventListener("click", () => {
    open = new Set(data.open);
    draw();
    search.value = select.value = "";
    start();
  });
  start();
}

"use strict";
// Charts by kind: from the data of a section to the options of ECharts. Names come from files, so tooltips are text nodes, never HTML.

const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
const short = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

// Room for the names of an axis, in pixels. The library's own reckoning cuts them off where the font is not the one it thinks of.
function labelWidth(names, most) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  return 14 + Math.max(0, ...names.map((name) => pen.measureText(short(name, most)).width));
}

function tooltip(lines) {
  const box = document.createElement("div");
  for (const line of lines) box.appendChild(document.createElement("div")).textContent = line;
  return box;
}

function look() {
  const [ink, quiet, line] = ["ink", "quiet", "line"].map((name) => theme.colour(name));
  const axis = {
    axisLine: { lineStyle: { color: line } }, axisTick: { show: false }, axisLabel: { color: quiet, fontSize: 11 },
    nameTextStyle: { color: quiet, fontSize: 12 }, splitLine: { lineStyle: { color: line } },
  };
  const base = {
    animation: false, aria: { enabled: false }, textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: ink },
    tooltip: { confine: true, backgroundColor: theme.colour("panel"), borderColor: line, textStyle: { color: ink, fontSize: 12 } },
    legend: { textStyle: { color: quiet, fontSize: 12 }, itemWidth: 14, itemHeight: 9, itemGap: 16, top: 0, left: 0 },
  };
  return { axis, base };
}

const marks = {
  dense: ["diamond", 11], begun: ["diamond", 9], accepted: ["circle", 8], "rolled back": ["path://M0,0L2,0L5,3L8,0L10,0L10,2L7,5L10,8L10,10L8,10L5,7L2,10L0,10L0,8L3,5L0,2Z", 10], final: ["circle", 12],
};

function marked(value, status, colour) {
  const [symbol, symbolSize] = marks[status] || marks.accepted;
  return { value, symbol, symbolSize, itemStyle: { color: status === "rolled back" ? theme.colour("red") : colour } };
}

const charts = {
  widths(rows) {
    const { axis, base } = look();
    const room = theme.narrow() ? 18 : 34;
    return {
      ...base,
      grid: { left: labelWidth(rows.map((row) => row.name), room), right: 64, top: 30, bottom: 22 },
      tooltip: { ...base.tooltip, trigger: "item", formatter: ({ dataIndex }) => {
        const { name, before, after } = rows[dataIndex];
        return tooltip([name, `${after} of ${before} stay (${percent(after / before, 1)})`]);
      } },
      xAxis: { ...axis, type: "value" },
      yAxis: { ...axis, type: "category", inverse: true, data: rows.map((row) => row.name),
        axisLabel: { ...axis.axisLabel, interval: 0, formatter: (name) => short(name, room) }, splitLine: { show: false } },
      series: [
        { name: "before", type: "bar", data: rows.map((row) => row.before), barWidth: "68%", barGap: "-100%", itemStyle: { color: theme.colour("pale"), borderRadius: 2 } },
        { name: "after", type: "bar", data: rows.map((row) => row.after), barWidth: "68%", itemStyle: { color: theme.colour("blue"), borderRadius: 2 } },
        { name: "text", type: "bar", silent: true, barWidth: "68%", barGap: "-100%", data: rows.map((row) => row.before), itemStyle: { color: "transparent" },
          label: { show: true, position: "right", fontSize: 11, color: theme.colour("quiet"), formatter: ({ dataIndex }) => {
            const { before, after } = rows[dataIndex];
            return after < before ? `${after} / ${before}` : `${before}`;
          } } },
      ],
      legend: { ...base.legend, data: ["before", "after"] },
    };
  },

  rounds(rows) {
    const { axis, base } = look();
    const stayed = rows.filter((row) => row.accuracy !== null && row.status !== "rolled back");
    const back = rows.filter((row) => row.accuracy !== null && row.status === "rolled back");
    const blue = theme.colour("blue");
    const line = (name, key, tint, dash) => ({
      name, type: "line", yAxisIndex: 1, data: rows.map((row) => [row.round, row[key]]), symbol: "none", step: "middle",
      lineStyle: { width: 1.5, type: dash, color: tint }, itemStyle: { color: tint },
    });
    return {
      ...base,
      grid: { left: 8, right: 8, top: theme.narrow() ? 74 : 52, bottom: 28, containLabel: true }, // a phone has two lines of legend
      tooltip: { ...base.tooltip, trigger: "axis", formatter: (found) => {
        const row = rows.find((one) => one.round === found[0].value[0]);
        const lines = [`Round ${row.round}: ${row.status}`, `${percent(row.params, 1)} of the parameters, ${percent(row.macs, 1)} of the MACs`];
        if (row.accuracy !== null) lines.push(`accuracy ${percent(row.accuracy, 2)}`);
        return tooltip(row.note ? [...lines, row.note] : lines);
      } },
      xAxis: { ...axis, type: "value", min: rows[0].round, max: rows[rows.length - 1].round, minInterval: 1, name: "round", nameLocation: "middle", nameGap: 24, splitLine: { show: false } },
      yAxis: [
        { ...axis, type: "value", scale: true, name: "accuracy", nameTextStyle: { ...axis.nameTextStyle, align: "left" }, axisLabel: { ...axis.axisLabel, formatter: (value) => percent(value, 1) } },
        { ...axis, type: "value", min: 0, name: "remains", nameTextStyle: { ...axis.nameTextStyle, align: "right" }, splitLine: { show: false }, axisLabel: { ...axis.axisLabel, formatter: (value) => percent(value) } },
      ],
      series: [
        line("parameters", "params", theme.tints()[1], "dashed"),
        line("MACs", "macs", theme.tints()[2], "dashed"),
        { name: "accuracy", type: "line", data: stayed.map((row) => marked([row.round, row.accuracy], row.status, blue)), lineStyle: { width: 2, color: blue }, itemStyle: { color: blue }, z: 5 },
        ...(back.length ? [{ name: "rolled back", type: "scatter", data: back.map((row) => marked([row.round, row.accuracy], row.status, blue)), itemStyle: { color: theme.colour("red") }, z: 6 }] : []),
      ],
    };
  },

  heatmap({ columns, rows, cells, title }) {
    const { axis, base } = look();
    const room = theme.narrow() ? 14 : 30;
    return {
      ...base,
      title: { text: title, textStyle: { fontSize: 12, fontWeight: 600, color: theme.colour("quiet") }, left: 0, top: 0 },
      legend: undefined,
      grid: { left: labelWidth(rows, room), right: 8, top: 52, bottom: 4 + 0.82 * labelWidth(columns, 16) },
      tooltip: { ...base.tooltip, formatter: ({ value }) => tooltip([rows[value[1]], columns[value[0]], `${value[3]} of ${value[4]} stay (${percent(value[2])})`]) },
      xAxis: { ...axis, type: "category", data: columns, splitLine: { show: false }, axisLabel: { ...axis.axisLabel, rotate: 55, hideOverlap: true, formatter: (name) => short(name, 16) } },
      yAxis: { ...axis, type: "category", inverse: true, data: rows, splitLine: { show: false }, axisLabel: { ...axis.axisLabel, interval: 0, formatter: (name) => short(name, room) } },
      visualMap: { min: 0, max: 1, dimension: 2, orient: "horizontal", right: 0, top: theme.narrow() ? 20 : 0, itemHeight: 90, itemWidth: 10, calculable: false, text: ["100 %", "0"],
        textStyle: { color: theme.colour("quiet"), fontSize: 11 }, inRange: { color: [theme.colour("wash"), theme.colour("pale"), theme.colour("blue")] } },
      series: [{ type: "heatmap", data: cells, itemStyle: { borderColor: theme.colour("panel"), borderWidth: 1 },
        label: { show: columns.length * 46 < window.innerWidth, fontSize: 10, color: "inherit", formatter: ({ value }) => `${value[3]}` } }],
    };
  },

  fronts({ runs }, chosen) {
    const { axis, base } = look();
    const tints = theme.tints();
    const kind = chosen.get("cost", [["macs", "MACs"], ["params", "parameters"]], "Cost");
    const names = runs.map((run) => run.name);
    const room = theme.narrow() ? 0 : 40 + labelWidth(names, 44);
    return {
      ...base,
      legend: { ...base.legend, type: "scroll", formatter: (name) => short(name, 44), orient: theme.narrow() ? "horizontal" : "vertical", left: theme.narrow() ? 0 : undefined, right: theme.narrow() ? undefined : 0, top: theme.narrow() ? 0 : 24, width: theme.narrow() ? undefined : room },
      grid: { left: 8, right: theme.narrow() ? 28 : room + 24, top: theme.narrow() ? 60 : 30, bottom: 30, containLabel: true },
      tooltip: { ...base.tooltip, trigger: "item", formatter: ({ seriesIndex, dataIndex }) => {
        const point = runs[seriesIndex].points[dataIndex];
        return tooltip([names[seriesIndex], `round ${point.round}: ${point.status}`, `accuracy ${percent(point.accuracy, 2)}`, `${percent(point.params, 1)} of the parameters, ${percent(point.macs, 1)} of the MACs`]);
      } },
      xAxis: { ...axis, type: "value", inverse: true, max: 1, scale: true, name: `${kind === "macs" ? "MACs" : "parameters"} that remain`, nameLocation: "middle", nameGap: 26, axisLabel: { ...axis.axisLabel, formatter: (value) => percent(value) } },
      yAxis: { ...axis, type: "value", scale: true, name: "accuracy", nameTextStyle: { ...axis.nameTextStyle, align: "left" }, axisLabel: { ...axis.axisLabel, formatter: (value) => percent(value, 1) } },
      series: runs.map((run, place) => {
        const tint = tints[place % tints.length];
        return { name: run.name, type: "line", emphasis: { focus: "series" }, itemStyle: { color: tint },
          lineStyle: { color: tint, width: 1.5, type: place < tints.length ? "solid" : "dashed", opacity: 0.7 },
          data: run.points.map((point) => marked([point[kind], point.accuracy], point.status, tint)) };
      }),
    };
  },

  importance({ edges, groups, cut, criterion }, chosen) {
    const { axis, base } = look();
    const place = chosen.get("group", [["all", "all groups"], ...groups.map((group, index) => [String(index), group.name])], "Group");
    const taken = place === "all" ? groups : [groups[Number(place)]];
    const sum = (key) => edges.slice(1).map((_, bin) => taken.reduce((total, group) => total + group[key][bin], 0));
    const [removed, kept] = [sum("removed"), sum("kept")];
    const width = edges[1] - edges[0];
    const bars = (name, values, tint) => ({ name, type: "custom", itemStyle: { color: tint }, clip: true,
      encode: { x: [0, 1], y: 3 },
      renderItem(params, api) {
        const [left, top] = api.coord([api.value(0), api.value(3)]);
        const [right, bottom] = api.coord([api.value(1), api.value(2)]);
        return { type: "rect", shape: { x: left, y: top, width: Math.max(right - left - 1, 1), height: bottom - top }, style: { fill: tint } };
      },
      data: values });
    const stacked = (values, under) => values.map((value, bin) => [edges[bin], edges[bin + 1], under[bin], under[bin] + value]);
    const blue = theme.colour("blue");
    const zero = removed.map(() => 0);
    const line = cut === null ? undefined : { symbol: "none", silent: true, lineStyle: { color: theme.colour("red"), type: "dashed" }, label: { color: theme.colour("red"), formatter: "highest removed", position: "end", align: 2 * cut < edges[0] + edges[edges.length - 1] ? "left" : "right", fontSize: 11 }, data: [{ xAxis: cut }] };
    return {
      ...base,
      grid: { left: 8, right: 24, top: 48, bottom: 30, containLabel: true },
      tooltip: { ...base.tooltip, trigger: "item", formatter: ({ dataIndex }) => tooltip([
        `score ${edges[dataIndex].toPrecision(3)} to ${edges[dataIndex + 1].toPrecision(3)}`, `${removed[dataIndex]} removed, ${kept[dataIndex]} kept`]) },
      xAxis: { ...axis, type: "value", min: edges[0], max: edges[0] + width * (edges.length - 1), name: `score by ${criterion}`, nameLocation: "middle", nameGap: 26, splitLine: { show: false }, axisLabel: { ...axis.axisLabel, showMaxLabel: false, showMinLabel: false, formatter: (value) => Number(value.toPrecision(3)) } },
      yAxis: { ...axis, type: "value", minInterval: 1, name: "units", nameTextStyle: { ...axis.nameTextStyle, align: "right" } },
      series: [
        { ...bars("removed", stacked(removed, zero), theme.colour("red")), markLine: line },
        bars("kept", stacked(kept, removed), blue),
      ],
    };
  },

  stairs(groups) {
    const { axis, base } = look();
    const every = groups.flatMap((group) => group.ms);
    const [least, most] = [Math.min(...every), Math.max(...every)]; // one scale, so that steps compare
    const step = 10 ** Math.floor(Math.log10(most - least || 1));
    const columns = theme.narrow() ? 1 : Math.min(3, groups.length);
    const rows = Math.ceil(groups.length / columns);
    const grids = groups.map((_, place) => ({
      left: `${(100 * (place % columns)) / columns + 1}%`, width: `${100 / columns - 4}%`,
      top: `${(100 * Math.floor(place / columns)) / rows + 12 / rows}%`, height: `${100 / rows - 24 / rows}%`, containLabel: true,
    }));
    return {
      ...base,
      legend: undefined,
      title: groups.map((group, place) => ({ text: `${short(group.name, 26)}: ${group.kept} of ${group.full}`, left: grids[place].left, top: `${(100 * Math.floor(place / columns)) / rows}%`, textStyle: { fontSize: 12, fontWeight: 600, color: theme.colour("quiet") } })),
      grid: grids,
      tooltip: { ...base.tooltip, trigger: "axis", formatter: (found) => tooltip([groups[found[0].seriesIndex].name, `${found[0].value[0]} units: ${found[0].value[1].toFixed(3)} ms`]) },
      xAxis: groups.map((group, gridIndex) => ({ ...axis, type: "value", gridIndex, min: 1, max: group.full, splitLine: { show: false } })),
      yAxis: groups.map((_, gridIndex) => ({ ...axis, type: "value", gridIndex, min: step * Math.floor(least / step), max: step * Math.ceil(most / step), splitNumber: 3, axisLabel: { ...axis.axisLabel, formatter: (value) => `${Number(value.toPrecision(3))} ms` } })),
      series: groups.map((group, place) => ({ type: "line", xAxisIndex: place, yAxisIndex: place, symbol: "none", lineStyle: { width: 1.5, color: theme.colour("blue") },
        data: group.widths.map((width, index) => [width, group.ms[index]]),
        markLine: { symbol: "none", silent: true, label: { show: false }, lineStyle: { color: theme.colour("red"), type: "dashed" }, data: [{ xAxis: group.kept }] } })),
    };
  },
};

// Selects above a chart, made when the chart first asks for them.
function choices(controls, redraw) {
  const made = {};
  return {
    get(key, options, text) {
      if (!made[key]) {
        const label = controls.appendChild(document.createElement("label"));
        label.append(`${text} `);
        made[key] = label.appendChild(document.createElement("select"));
        for (const [value, name] of options) made[key].add(new Option(name, value));
        made[key].addEventListener("change", redraw);
      }
      return made[key].value;
    },
  };
}

function drawChart(figure) {
  const data = JSON.parse(document.getElementById(figure.dataset.source).textContent);
  const plot = figure.querySelector(".plot");
  if (figure.dataset.kind === "stairs" && theme.narrow()) plot.style.height = `${170 * data.length}px`;
  const chart = echarts.init(plot, null, { renderer: "svg" });
  const draw = () => chart.setOption(charts[figure.dataset.kind](data, chosen), { notMerge: true });
  const chosen = choices(figure.querySelector(".controls"), () => draw());
  draw();
  theme.drawings.push(draw);
  new ResizeObserver(() => { chart.resize(); draw(); }).observe(plot);
}

"use strict";
// Charts are drawn at the width of their place, so that their texts keep their size.

/** Rows of bars or dots on one axis; `draw(row, x, y)` gives the marks of a row, `row.note` stands at its end. */
function rowChart(width, title, rows, low, high, zero, draw) {
  const beside = width >= 520;
  const longest = Math.max(...rows.map(row => row.label.length)) * GLYPH + 14;
  const [left, right, step] = [beside ? Math.min(width * 0.4, longest) : 14, 66, beside ? 24 : 40];
  const height = rows.length * step + 26;
  const x = linear(low, high, left, width - right);
  const axis = ticks(low, high, Math.max(2, (width - left - right) / 80)).map(([value, text]) => [
    s("line", {class: "axis", x1: x(value), x2: x(value), y1: 0, y2: height - 22}),
    s("text", {class: "soft", x: x(value), y: height - 6, "text-anchor": "middle"}, text)]);
  const marks = rows.map((row, place) => {
    const y = place * step + (beside ? 12 : 28);
    return s("g", {}, s("title", {}, row.title),
      s("text", {x: beside ? left - 10 : 4, y: beside ? y + 4 : y - 12, "text-anchor": beside ? "end" : "start"}, clip(row.label, beside ? left - 10 : width - 8)),
      draw(row, x, y), s("text", {x: width, y: y + 4, "text-anchor": "end", "font-weight": row.strong ? 700 : 400}, row.note));
  });
  const line = zero === null ? null : s("line", {class: "zero", x1: x(zero), x2: x(zero), y1: 0, y2: height - 22});
  return chart(width, height, title, axis, line, marks);
}
const around = (values, share) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
};
function whisker(low, high, x, y) {
  const line = (x1, x2, y1, y2) => s("line", {class: "whisker", x1, x2, y1, y2});
  return [line(x(low), x(high), y, y), line(x(low), x(low), y - 3, y + 3), line(x(high), x(high), y - 3, y + 3)];
}

/** Bars of one metric, from 0, or from chance for AUC, with the interval over users. */
function barChart(width, metric, systems) {
  const from = ["auc", "gauc"].includes(metric.name) ? 0.5 : 0;
  const rows = systems.filter(system => system.cells[metric.name]).map(system => ({...system.cells[metric.name], label: system.label}))
    .map(cell => ({...cell, note: number(cell.mean), strong: cell.best, title: `${cell.label}: ${number(cell.mean)}`}));
  if (!rows.length) return null;
  const ends = rows.flatMap(row => [row.mean, row.low ?? row.mean, row.high ?? row.mean]);
  return rowChart(width, `${metric.name} by system`, rows, Math.min(from, ...ends), Math.max(from, ...ends), null, (row, x, y) => [
    s("rect", {x: Math.min(x(from), x(row.mean)), y: y - 7, width: Math.abs(x(row.mean) - x(from)), height: 14, rx: 1,
      fill: row.best ? "var(--c0)" : "color-mix(in oklab, var(--c0) 45%, var(--paper))"}),
    row.low === null ? null : whisker(row.low, row.high, x, y)]);
}

/** One dot a seed: the difference to the reference, or the value where nothing is tested. */
function seedChart(width, metric, systems) {
  const reference = data.systems.find(system => system.name === data.reference)?.cells[metric];
  const rows = systems.filter(system => system.cells[metric] && system.group && system.name !== data.reference).map(system => {
    const {values, mean, test} = system.cells[metric];
    const dots = values.map((value, i) => [data.repeats[i], value, reference?.values[i]])
      .filter(([, value, other]) => value !== null && (!reference || (other !== null && other !== undefined)))
      .map(([repeat, value, other]) => [repeat, reference ? value - other : value]);
    const note = reference ? (test ? signed(test.difference) : "") : number(mean);
    return {label: system.label, dots, test, note, strong: test?.significant, title: `${system.label}: ${note}`};
  }).filter(row => row.dots.length);
  if (!rows.length) return null;
  const ends = rows.flatMap(row => [...row.dots.map(dot => dot[1]), ...(row.test ? [row.test.low, row.test.high] : [])]);
  const [low, high] = around(reference ? [0, ...ends] : ends, 0.04);
  return rowChart(width, `${metric} seed by seed`, rows, low, high, reference ? 0 : null, (row, x, y) => [
    row.test ? s("line", {x1: x(row.test.low), x2: x(row.test.high), y1: y, y2: y, stroke: "var(--c0)", "stroke-width": 9, "stroke-opacity": 0.25}) : null,
    row.dots.map(([repeat, value]) => s("circle", {cx: x(value), cy: y, r: 4, fill: "var(--c1)", "fill-opacity": 0.8, stroke: "var(--paper)"},
      s("title", {}, `${row.label}, ${repeat}: ${reference ? signed(value) : number(value)}`)))]);
}

/** Axes of a chart with two scales. */
function plane(width, height, xTicks, yTicks, x, y, xName, yName) {
  return [yTicks.map(([value, text]) => [s("line", {class: "axis", x1: 56, x2: width - 12, y1: y(value), y2: y(value)}),
    s("text", {class: "soft", x: 50, y: y(value) + 4, "text-anchor": "end"}, text)]),
  xTicks.map(([value, text]) => s("text", {class: "soft", x: x(value), y: height - 24, "text-anchor": "middle"}, text)),
  s("text", {class: "soft", x: width - 12, y: height - 6, "text-anchor": "end"}, xName), s("text", {class: "soft", x: 4, y: 12}, yName)];
}

/** Quality against the seconds of the whole run, with the front of those that none beats in both. */
function costChart(width, metric, systems) {
  const points = systems.filter(system => system.cells[metric] && system.seconds)
    .map((system, place) => ({label: system.label, cost: system.seconds, value: system.cells[metric].mean, place}));
  if (new Set(points.map(point => point.cost)).size < 2) return null;
  const sign = lower(metric) ? -1 : 1;
  points.sort((a, b) => a.cost - b.cost || sign * (b.value - a.value));
  let best = -Infinity;
  for (const point of points) {
    point.front = sign * point.value > best;
    best = Math.max(best, sign * point.value);
  }
  const height = 340;
  const costs = points.map(point => point.cost);
  const wide = Math.max(...costs) / Math.min(...costs) > 10;
  const scale = wide ? Math.log10 : value => value;
  const [x0, x1] = around(costs.map(scale), 0.06);
  const [y0, y1] = around(points.map(point => point.value), 0.08);
  const [across, y] = [linear(x0, x1, 60, width - 16), linear(y0, y1, height - 44, 22)];
  const x = cost => across(scale(cost));
  const marks = wide ? [1, 2, 5].flatMap(m => [1, 10, 100, 1000, 1e4, 1e5].map(p => m * p)).filter(v => scale(v) >= x0 && scale(v) <= x1).map(v => [v, seconds(v)])
    : ticks(x0, x1, width / 130).map(([value]) => [value, seconds(value)]);
  const front = points.filter(point => point.front);
  const steps = front.map((point, i) => (i ? `H${x(point.cost)}V${y(point.value)}` : `M${x(point.cost)},${y(point.value)}`)).join("");
  const drawn = chart(width, height, `${metric} against seconds`, plane(width, height, marks, ticks(y0, y1, 6), x, y, "seconds of the whole run", metric),
    s("path", {d: steps, fill: "none", stroke: "var(--c1)", "stroke-width": 1.5}),
    points.map(point => s("circle", {cx: x(point.cost), cy: y(point.value), r: 5, stroke: "var(--paper)",
      fill: point.front ? "var(--c1)" : "var(--c7)"}, s("title", {}, `${point.label}: ${number(point.value)}, ${seconds(point.cost)}`))),
    front.map((point, i) => s("text", {x: x(point.cost), y: y(point.value) - 9, "text-anchor": "middle", "font-weight": 700}, i + 1)));
  return [drawn, h("ol", {class: "front"}, front.map(point => h("li", {}, `${point.label}: ${number(point.value)} in ${seconds(point.cost)}`)))];
}

/** Validation metric by epoch, mean over the seeds that reached it. */
function curveChart(width, metric, lines) {
  const height = 320;
  const points = lines.flatMap(line => line.points);
  const [x0, x1] = [Math.min(...points.map(p => p[0])), Math.max(...points.map(p => p[0]))];
  const [y0, y1] = around(points.map(p => p[1]), 0.06);
  const [x, y] = [linear(x0, x1, 64, width - 20), linear(y0, y1, height - 44, 22)];
  const epochs = ticks(x0, x1, Math.min(x1 - x0 || 1, width / 60)).filter(([value]) => Number.isInteger(value));
  return chart(width, height, `${metric} by epoch`, plane(width, height, epochs, ticks(y0, y1, 6), x, y, "epoch", `validation ${metric}`),
    lines.map((line, place) => s("g", {}, s("title", {}, line.label),
      s("path", {d: "M" + line.points.map(([a, b]) => `${x(a)},${y(b)}`).join("L"), fill: "none", stroke: colour(place), "stroke-width": 2, "stroke-dasharray": DASHES[place]}),
      line.points.map(([a, b]) => s("circle", {cx: x(a), cy: y(b), r: 2.5, fill: colour(place)})))));
}

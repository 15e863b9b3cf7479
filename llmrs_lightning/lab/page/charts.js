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
      beside ? s("text", {x: left - 10, y: y + 4, "text-anchor": "end"}, clip(row.label, left - 10))
        : s("text", {x: 4, y: y - 12}, clip(row.label, width - 8)),
      draw(row, x, y),
      s("text", {x: width, y: y + 4, "text-anchor": "end", "font-weight": row.strong ? 700 : 400}, row.note));
  });
  const line = zero === null ? null : s("line", {class: "zero", x1: x(zero), x2: x(zero), y1: 0, y2: height - 22});
  return chart(width, height, title, axis, line, marks);
}
const around = (values, share) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
};
const bar = (from, to, y, fill) => (
  s("rect", {x: Math.min(from, to), y: y - 7, width: Math.abs(to - from), height: 14, rx: 1, fill}));
function whisker(low, high, x, y) {
  const line = (x1, x2, y1, y2) => s("line", {class: "whisker", x1, x2, y1, y2});
  return [line(x(low), x(high), y, y), line(x(low), x(low), y - 3, y + 3), line(x(high), x(high), y - 3, y + 3)];
}

/** Bars of one metric, from 0, or from chance for AUC, with the interval over users. */
function barChart(width, metric, systems) {
  const from = ["auc", "gauc"].includes(metric.name) ? 0.5 : 0;
  const rows = systems.filter(system => system.cells[metric.name]).map(({label, cells}) => {
    const cell = cells[metric.name];
    return {...cell, label, note: number(cell.mean), strong: cell.best, title: `${label}: ${number(cell.mean)}`};
  });
  if (!rows.length) return null;
  const ends = rows.flatMap(row => [row.mean, row.low ?? row.mean, row.high ?? row.mean]);
  const [low, high] = [Math.min(from, ...ends), Math.max(from, ...ends)];
  return rowChart(width, `${metric.name} by system`, rows, low, high, null, (row, x, y) => [
    bar(x(from), x(row.mean), y, row.best ? "var(--c0)" : "color-mix(in oklab, var(--c0) 45%, var(--paper))"),
    row.low === null ? null : whisker(row.low, row.high, x, y)]);
}

/** One dot a seed: the difference to the reference, or the value where nothing is tested. */
function seedChart(width, metric, systems) {
  const reference = data.systems.find(system => system.name === data.reference)?.cells[metric];
  const others = systems.filter(system => system.cells[metric] && system.group && system.name !== data.reference);
  const rows = others.map(system => {
    const {values, mean, test} = system.cells[metric];
    const dots = values.map((value, i) => [data.repeats[i], value, reference?.values[i]])
      .filter(([, value, other]) => value !== null && (!reference || (other !== null && other !== undefined)))
      .map(([repeat, value, other]) => [repeat, reference ? value - other : value]);
    const note = reference ? (test ? signed(test.difference) : "") : number(mean);
    return {label: system.label, dots, test, note, strong: test?.significant, title: `${system.label}: ${note}`};
  }).filter(row => row.dots.length);
  if (!rows.length) return null;
  const ends = rows.flatMap(({dots, test}) => [...dots.map(dot => dot[1]), ...(test ? [test.low, test.high] : [])]);
  const [low, high] = around(reference ? [0, ...ends] : ends, 0.04);
  const band = (test, x, y) => s("line", {x1: x(test.low), x2: x(test.high), y1: y, y2: y, class: "band"});
  const dot = (row, [repeat, value], x, y) => s("circle", {cx: x(value), cy: y, r: 4, class: "dot"},
    s("title", {}, `${row.label}, ${repeat}: ${reference ? signed(value) : number(value)}`));
  return rowChart(width, `${metric} seed by seed`, rows, low, high, reference ? 0 : null, (row, x, y) => [
    row.test ? band(row.test, x, y) : null, row.dots.map(one => dot(row, one, x, y))]);
}

/** Axes of a chart with two scales. */
function plane(width, height, xTicks, yTicks, x, y, xName, yName) {
  const text = (attributes, value) => s("text", {class: "soft", ...attributes}, value);
  return [
    yTicks.map(([value]) => s("line", {class: "axis", x1: 56, x2: width - 12, y1: y(value), y2: y(value)})),
    yTicks.map(([value, label]) => text({x: 50, y: y(value) + 4, "text-anchor": "end"}, label)),
    xTicks.map(([value, label]) => text({x: x(value), y: height - 24, "text-anchor": "middle"}, label)),
    text({x: width - 12, y: height - 6, "text-anchor": "end"}, xName), text({x: 4, y: 12}, yName)];
}

/** Ticks of seconds, of a logarithmic axis if they span more than tenfold. */
function costTicks(low, high, wide, width) {
  const decades = [1, 10, 100, 1000, 1e4, 1e5].flatMap(power => [power, 2 * power, 5 * power]);
  const values = wide ? decades.filter(value => Math.log10(value) >= low && Math.log10(value) <= high)
    : ticks(low, high, width / 130).map(([value]) => value);
  const named = values.map(value => [value, seconds(value)]);
  return named.filter(([, text], i) => !i || text !== named[i - 1][1]);
}

/** Quality against the seconds of the whole run, with the front of those that none beats in both. */
function costChart(width, metric, systems) {
  const points = systems.filter(system => system.cells[metric] && system.seconds)
    .map(system => ({label: system.label, cost: system.seconds, value: system.cells[metric].mean}));
  const costs = points.map(point => point.cost);
  if (new Set(costs).size < 2) return null;
  const sign = lower(metric) ? -1 : 1;
  points.sort((a, b) => a.cost - b.cost || sign * (b.value - a.value));
  const front = points.filter((point, i) => points.slice(0, i).every(other => sign * other.value < sign * point.value));
  const height = 340;
  const wide = Math.max(...costs) / Math.min(...costs) > 10;
  const scale = wide ? Math.log10 : value => value;
  const [x0, x1] = around(costs.map(scale), 0.06);
  const [y0, y1] = around(points.map(point => point.value), 0.08);
  const [across, y] = [linear(x0, x1, 60, width - 16), linear(y0, y1, height - 44, 22)];
  const x = value => across(scale(value));
  const axes = [costTicks(x0, x1, wide, width), ticks(y0, y1, 6), x, y, "seconds of the whole run", metric];
  const steps = front.map(({cost, value}, i) => (i ? `H${x(cost)}V${y(value)}` : `M${x(cost)},${y(value)}`)).join("");
  const words = ({label, value, cost}) => `${label}: ${number(value)} in ${seconds(cost)}`;
  const drawn = chart(width, height, `${metric} against seconds`, plane(width, height, ...axes),
    s("path", {d: steps, fill: "none", stroke: "var(--c1)", "stroke-width": 1.5}),
    points.map(point => s("circle", {cx: x(point.cost), cy: y(point.value), r: 5, stroke: "var(--paper)",
      fill: front.includes(point) ? "var(--c1)" : "var(--c7)"}, s("title", {}, words(point)))),
    front.map(({cost, value}, i) => (
      s("text", {x: x(cost), y: y(value) - 9, "text-anchor": "middle", "font-weight": 700}, i + 1))));
  return [drawn, h("ol", {class: "front"}, front.map(point => h("li", {}, words(point))))];
}

/** Validation metric by epoch, mean over the seeds that reached it. */
function curveChart(width, metric, lines) {
  const height = 320;
  const points = lines.flatMap(line => line.points);
  const [x0, x1] = range(points.map(point => point[0]));
  const [y0, y1] = around(points.map(point => point[1]), 0.06);
  const [x, y] = [linear(x0, x1, 64, width - 20), linear(y0, y1, height - 44, 22)];
  const epochs = ticks(x0, x1, Math.min(x1 - x0 || 1, width / 60)).filter(([value]) => Number.isInteger(value));
  const line = (one, place) => s("g", {}, s("title", {}, one.label),
    s("path", {d: `M${one.points.map(([a, b]) => `${x(a)},${y(b)}`).join("L")}`, ...stroke(place)}),
    one.points.map(([a, b]) => s("circle", {cx: x(a), cy: y(b), r: 2.5, fill: `var(--c${place})`})));
  return chart(width, height, `${metric} by epoch`,
    plane(width, height, epochs, ticks(y0, y1, 6), x, y, "epoch", `validation ${metric}`), lines.map(line));
}

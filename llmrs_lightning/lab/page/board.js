"use strict";
// The leaderboard: sorted by a header, with what is known of each difference under its value.

const DETAILS = [["difference", "difference and 95 % interval"], ["p", "p over users"], ["seeds", "p over seeds"],
  ["effect", "effect size"], ["interval", "95 % interval of the value"], ["", "nothing"]];
const order = {key: data.metrics[0].name, reversed: false, detail: data.reference === null ? "" : "difference"};
const lower = name => data.metrics.find(metric => metric.name === name).lower;

function detail(cell, system) {
  const test = cell.test;
  if (order.detail === "interval") return cell.low === null ? "" : `${number(cell.low)} to ${number(cell.high)}`;
  if (!order.detail) return "";
  if (system.name === data.reference) return "reference";
  if (!test) return "not tested";
  if (order.detail === "p") return chance(test.p);
  if (order.detail === "seeds") return test.pSeeds === null ? "one seed" : chance(test.pSeeds);
  if (order.detail === "effect") return `d = ${minus(test.effect.toFixed(2))}`;
  return `${signed(test.difference)} [${number(test.low)}, ${number(test.high)}]`;
}

function mark(test) {
  if (!test?.significant) return h("span", {class: "mark"});
  const word = test.better ? "better" : "worse";
  const title = `significantly ${word} than ${data.reference}, ${chance(test.p)}`;
  return h("span", {class: `mark ${word}`, role: "img", title, "aria-label": title}, test.better ? "▲" : "▼");
}

function valueCell(system, metric) {
  const cell = system.cells[metric.name];
  if (!cell) return td("–", "number");
  const spread = cell.std === null ? null : h("span", {class: "spread"}, ` ± ${number(cell.std)}`);
  const below = detail(cell, system);
  const mean = h("span", {class: cell.best ? "best" : null}, number(cell.mean));
  return td([mean, spread, mark(cell.test), below ? h("small", {}, below) : null], "number");
}

function sorted(systems) {
  const metric = data.metrics.find(m => m.name === order.key);
  const value = system => (metric ? system.cells[order.key]?.mean : system[order.key]) ?? null;
  const sign = ((metric && !metric.lower) ? -1 : 1) * (order.reversed ? -1 : 1);
  return [...systems].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
  });
}

function header(key, text, kind, redraw) {
  const metric = data.metrics.find(m => m.name === key);
  const rising = Boolean(metric && !metric.lower) === order.reversed;
  const sort = order.key !== key ? "none" : rising ? "ascending" : "descending";
  const sortBy = () => {
    order.reversed = order.key === key && !order.reversed;
    order.key = key;
    redraw();
    document.querySelector(`#board th[data-key="${CSS.escape(key)}"] button`).focus();
  };
  const title = metric?.lower ? "lower is better" : metric ? "higher is better" : null;
  const button = h("button", {type: "button", onclick: sortBy, title}, text);
  return h("th", {scope: "col", "aria-sort": sort, "data-key": key, class: kind}, button);
}

function drawBoard(place, systems) {
  const redraw = () => drawBoard(place, systems);
  const inside = new Set(data.systems.filter(system => system.group).map(system => system.system));
  const several = data.groups.length > 1 && inside.size > 1;
  const cost = systems.some(system => system.seconds !== null);
  const head = [
    header(several ? "system" : "label", "System", null, redraw),
    several ? header("group", "Configuration", null, redraw) : null,
    data.metrics.map(metric => header(metric.name, metric.name, "number", redraw)),
    header("seeds", "Seeds", "number", redraw),
    cost ? header("seconds", "Run", "number", redraw) : null,
  ];
  const body = sorted(systems).map(system => [
    rowName(several ? system.system : system.label),
    several ? td(system.group || "–", "words") : null,
    data.metrics.map(metric => valueCell(system, metric)),
    td(String(system.seeds), "number"),
    cost ? td(system.seconds === null ? "–" : seconds(system.seconds), "number") : null,
  ]);
  const change = value => {
    order.detail = value;
    redraw();
  };
  const choice = select("Below each value", DETAILS, order.detail, change);
  const tools = data.reference === null ? "" : h("div", {class: "tools"}, choice);
  place.replaceChildren(tools, table("Leaderboard", head, body, "board"));
}

"use strict";
// Sections of the page; each draws itself for the systems that the filter leaves.

const state = {text: "", group: "", tag: "", metric: data.metrics[0].name, cut: 0};
const MOST_ROWS = 16;
const MOST_LINES = 8;

const matches = system => (!state.group || system.group === state.group) && (!state.tag || system.tags.includes(state.tag))
  && state.text.toLowerCase().split(/\s+/).every(word => system.name.toLowerCase().includes(word));
const first = (systems, most, what) => (systems.length > most ? ` The first ${most} of ${systems.length} ${what} are shown.` : "");
const rows = (...cells) => h("tr", {}, cells);
function table(name, head, body) {
  return h("div", {class: "box", tabindex: 0, role: "region", "aria-label": name}, h("table", {}, h("thead", {}, head), h("tbody", {}, body)));
}

function bars(place, systems, width) {
  const each = Math.min(width, Math.floor((width - 32 * (Math.floor((width + 32) / 412) - 1)) / Math.max(1, Math.floor((width + 32) / 412))));
  const charts = data.metrics.map(metric => [metric, barChart(each, metric, systems.slice(0, MOST_ROWS))]).filter(([, svg]) => svg);
  place.replaceChildren(h("div", {class: "grid"}, charts.map(([metric, svg]) => h("div", {}, h("h3", {}, metric.name + (metric.lower ? " (lower is better)" : "")), svg))));
  return "Bars start at 0, those of AUC at chance; lines are 95 % intervals over users." + first(systems, MOST_ROWS, "systems");
}
function seedByseed(place, systems, width) {
  const svg = seedChart(width, state.metric, systems.slice(0, MOST_ROWS));
  place.replaceChildren(svg ?? "No seed in common.");
  const what = data.reference === null ? `${state.metric} of each seed.` : `${state.metric} minus that of ${data.reference} under the same seed; the band is the 95 % interval over users.`;
  return what + (lower(state.metric) ? " Lower is better." : "") + first(systems, MOST_ROWS, "systems");
}
function heat(place, systems) {
  const cuts = data.slices.cuts;
  const cut = cuts[state.cut];
  const value = (system, i) => data.slices.values[data.systems.indexOf(system)]?.[state.metric]?.[state.cut]?.[i] ?? null;
  const shown = systems.filter(system => cut.labels.some((_, i) => value(system, i) !== null));
  const scale = shown.some(system => system.group) ? shown.filter(system => system.group) : shown;
  const ends = cut.labels.map((_, i) => scale.map(system => value(system, i)).filter(v => v !== null)).map(vs => [Math.min(...vs), Math.max(...vs)]);
  const cell = (system, i) => {
    const v = value(system, i);
    if (v === null) return h("td", {class: "number"}, "–");
    const share = (v - ends[i][0]) / (ends[i][1] - ends[i][0] || 1);
    const good = Math.min(1, Math.max(0, lower(state.metric) ? 1 - share : share));
    return h("td", {class: `number${good === 1 ? " best" : ""}`, style: `background: color-mix(in oklab, var(--heat) ${Math.round(55 * good)}%, transparent)`}, number(v));
  };
  const head = rows(h("th", {scope: "col"}, "System"), cut.labels.map((label, i) => h("th", {scope: "col", class: "number"}, label, h("small", {}, `${cut.rows[i].toLocaleString("en")} rows`))));
  const body = shown.map(system => rows(h("th", {scope: "row"}, system.label), cut.labels.map((_, i) => cell(system, i))));
  place.replaceChildren(h("div", {class: "tools"}, select("Cut by", cuts.map((c, i) => [String(i), c.name]), String(state.cut), v => { state.cut = Number(v); drawAll(); })),
    shown.length ? table("Slices", head, body) : h("p", {}, `${state.metric} is not told by this cut.`));
  return `${state.metric} on parts of the test rows; in each column, the darker the better.`;
}
function cost(place, systems, width) {
  const whole = systems.filter(system => system.system === "fused" || system.system.startsWith("fusion/"));
  const svg = costChart(width, state.metric, whole.length ? whole : systems);
  place.replaceChildren(...(svg ?? ["These systems cost the same: they are of one run."]));
  return "Fused systems and fusions against the seconds of their runs, from reading data to the test. What no other beats in both is numbered.";
}
function fusions(place, systems, width) {
  const shown = data.fusions.filter(fusion => systems.some(system => system.name === fusion.system));
  const each = Math.min(width, 420);
  place.replaceChildren(h("div", {class: "grid"}, shown.map(fusion => {
    const values = fusion.numbers.map(([, value]) => value);
    const svg = rowChart(each, fusion.label, fusion.numbers.map(([label, value]) => ({label, value, note: number(value), title: `${label}: ${number(value)}`})),
      Math.min(0, ...values), Math.max(0, ...values), 0, (row, x, y) =>
        s("rect", {x: Math.min(x(0), x(row.value)), y: y - 7, width: Math.abs(x(row.value) - x(0)), height: 14, fill: "var(--c2)"}));
    return h("div", {}, h("h3", {}, fusion.label), svg);
  })));
  return "What each fusion makes of the members: weights, or importances of its features; means over seeds.";
}
function curves(place, systems, width) {
  const all = systems.map(system => ({label: system.label, points: data.curves[data.systems.indexOf(system)]?.[state.metric] ?? []})).filter(line => line.points.length);
  const lines = all.slice(0, MOST_LINES);
  const sample = i => s("svg", {width: 28, height: 10, "aria-hidden": "true"}, s("path", {d: "M0,5H28", stroke: colour(i), "stroke-width": 2, "stroke-dasharray": DASHES[i]}));
  place.replaceChildren(...(lines.length ? [curveChart(width, state.metric, lines), h("ul", {class: "legend"}, lines.map((line, i) => h("li", {}, sample(i), line.label)))]
    : [`${state.metric} was not measured in validation.`]));
  return "On the validation part, at the end of each epoch, mean over the seeds that reached it." + first(all, MOST_LINES, "lines");
}
const picked = {a: null, b: null, user: "0"};
function lists(place) {
  const {users, items, entries} = data.lists;
  const names = Object.keys(entries);
  picked.a ??= names[0];
  picked.b ??= names[1] ?? names[0];
  const of = name => entries[name][picked.user] ?? [];
  const options = names.map(name => [name, data.systems[name].label]);
  const change = key => value => { picked[key] = value; lists(place); };
  const column = (name, other) => {
    const known = new Set(of(other).map(entry => entry[0]));
    return h("div", {}, h("h3", {}, data.systems[name].label), h("ol", {}, of(name).map(([item, liked]) =>
      h("li", {}, h("span", {class: known.has(item) ? "both" : null}, liked ? h("span", {role: "img", "aria-label": "liked in the test part"}, "★ ") : null, items[item])))));
  };
  place.replaceChildren(h("div", {class: "tools"}, select("User", users.map((user, i) => [String(i), user]), picked.user, change("user")),
    select("Left", options, picked.a, change("a")), select("Right", options, picked.b, change("b"))),
  h("div", {class: "lists"}, column(picked.a, picked.b), column(picked.b, picked.a)));
  return `Lists of one user, ${data.lists.repeat}; ★ liked in the test part, shaded where both lists have the item.`;
}
function runs(place) {
  const differ = data.options.map(([name]) => name);
  const head = rows(["Configuration", "Seeds", "Tags", "Weights", ...differ].map((name, i) => h("th", {scope: "col", class: i === 3 ? "number" : null}, name)));
  const body = data.groups.map((group, i) => rows(h("th", {scope: "row"}, group.name), h("td", {class: "words"}, group.repeats.join("; ")), h("td", {}, group.tags.join(", ") || "–"),
    h("td", {class: "number"}, group.parameters === null ? "–" : group.parameters.toLocaleString("en")), data.options.map(([, values]) => h("td", {class: "words"}, values[i]))));
  place.replaceChildren(table("Configurations", head, body));
  return differ.length ? "Every option in which configurations differ." : "What was compared.";
}

const SECTIONS = [["Leaderboard", (place, systems) => { drawBoard(place, systems); return data.caption; }, true],
  ["Metric by metric", bars, true], ["Seed by seed", seedByseed, data.systems.length > 1], ["Slices", heat, data.slices.cuts.length],
  ["Quality and cost", cost, new Set(data.systems.map(system => system.seconds).filter(Boolean)).size > 1],
  ["Fusions", fusions, data.fusions.length], ["Learning curves", curves, Object.keys(data.curves).length],
  ["Recommendations side by side", lists, data.lists !== null], ["Configurations", runs, true]];
const places = SECTIONS.filter(([, , there]) => there).map(([title, draw]) => {
  const [note, place] = [h("p", {class: "note"}), h("div", {})];
  const id = title.toLowerCase().replaceAll(" ", "-");
  document.getElementById("main").append(h("section", {"aria-labelledby": id}, h("h2", {id}, title), note, place));
  return [draw, note, place];
});

function drawAll() {
  const systems = data.systems.filter(matches);
  document.getElementById("count").textContent = `${systems.length} of ${data.systems.length} systems`;
  for (const [draw, note, place] of places) {
    if (systems.length) note.textContent = draw(place, systems, place.clientWidth);
    else place.replaceChildren("No system is left by the filter.");
  }
}
function control(id, options) {
  const element = document.getElementById(id);
  element.append(...options.map(([value, text]) => h("option", {value}, text)));
  element.closest("label").hidden = options.length < 2;
  element.addEventListener("input", () => { state[id] = element.value; drawAll(); });
}
document.getElementById("summary").textContent = data.summary;
document.getElementById("warnings").append(...data.warnings.map(warning => h("li", {}, warning)));
document.getElementById("warnings").hidden = !data.warnings.length;
document.getElementById("controls").addEventListener("submit", event => event.preventDefault());
control("group", [["", "all"], ...data.groups.map(group => [group.name, group.name])].slice(data.groups.length > 1 ? 0 : 1));
control("tag", [["", "all"], ...data.tags.map(tag => [tag, tag])]);
control("metric", data.metrics.map(metric => [metric.name, metric.name]));
document.getElementById("text").addEventListener("input", event => { state.text = event.target.value; drawAll(); });
drawAll();
let known = document.body.clientWidth;
new ResizeObserver(() => {
  if (known === document.body.clientWidth) return;
  known = document.body.clientWidth;
  requestAnimationFrame(drawAll);
}).observe(document.body);

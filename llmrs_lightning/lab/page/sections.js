"use strict";
// Sections below the leaderboard: each draws itself into `place` for the systems that the filter leaves, and says what
// it shows.

const state = {text: "", group: "", tag: "", metric: data.metrics[0].name, cut: 0};
const picked = {left: null, right: null, user: "0"}; // of the lists side by side
const MOST_ROWS = 16;
const MOST_LINES = 8;
const GAP = 32;
const COLUMN = 380; // least width of a chart beside others, as in page.css

const cut = (systems, most, what) => (
  systems.length > most ? ` The first ${most} of ${systems.length} ${what} are shown.` : "");
const range = values => [Math.min(...values), Math.max(...values)];

function bars(place, systems, width) {
  const columns = Math.max(1, Math.floor((width + GAP) / (COLUMN + GAP)));
  const each = Math.floor((width - GAP * (columns - 1)) / columns);
  const charts = data.metrics.map(metric => {
    const svg = barChart(each, metric, systems.slice(0, MOST_ROWS));
    return svg && h("div", {}, h("h3", {}, metric.name + (metric.lower ? " (lower is better)" : "")), svg);
  });
  place.replaceChildren(h("div", {class: "grid"}, charts));
  const note = "Bars start at 0, those of AUC at chance; lines are 95 % intervals over users.";
  return note + cut(systems, MOST_ROWS, "systems");
}

function seedBySeed(place, systems, width) {
  const {metric} = state;
  place.replaceChildren(seedChart(width, metric, systems.slice(0, MOST_ROWS)) ?? "No seed in common.");
  const against = `${metric} minus that of ${data.reference} under the same seed`;
  const note = data.reference === null ? `${metric} of each seed.` : `${against}; bands are 95 % intervals over users.`;
  return note + (lower(metric) ? " Lower is better." : "") + cut(systems, MOST_ROWS, "systems");
}

function heat(place, systems) {
  const {metric} = state;
  const of = (system, at) => data.slices.values[data.systems.indexOf(system)]?.[metric]?.[at] ?? [];
  const cuts = data.slices.cuts.map((one, at) => ({...one, at}))
    .filter(({at}) => systems.some(system => of(system, at).some(value => value !== null)));
  if (!cuts.length) {
    place.replaceChildren();
    return `${metric} is not told by slices.`;
  }
  const {at, labels, rows} = cuts.find(one => one.at === state.cut) ?? cuts[0];
  const shown = systems.filter(system => of(system, at).some(value => value !== null));
  const inside = shown.filter(system => system.group); // baselines lie far off
  const scale = inside.length ? inside : shown;
  const ends = labels.map((_, i) => range(scale.map(system => of(system, at)[i] ?? null).filter(v => v !== null)));
  const cell = (value, [low, high]) => {
    if (value === null) return td("–", "number");
    const share = (value - low) / (high - low || 1);
    const good = Math.min(1, Math.max(0, lower(metric) ? 1 - share : share));
    const style = `background: color-mix(in oklab, var(--heat) ${Math.round(55 * good)}%, transparent)`;
    return h("td", {class: good === 1 ? "number best" : "number", style}, number(value));
  };
  const size = i => h("small", {}, `${rows[i].toLocaleString("en")} rows`);
  const head = [th("System"), labels.map((label, i) => th([label, size(i)], "number"))];
  const body = shown.map(system => [rowName(system.label), ends.map((end, i) => cell(of(system, at)[i] ?? null, end))]);
  const change = value => { state.cut = Number(value); drawAll(); };
  const choice = select("Cut by", cuts.map(one => [String(one.at), one.name]), String(at), change);
  place.replaceChildren(h("div", {class: "tools"}, choice), table("Slices", head, body));
  return `${metric} on parts of the test rows; in each column, the darker the better.`;
}

function cost(place, systems, width) {
  const whole = systems.filter(system => system.system === "fused" || system.system.startsWith("fusion/"));
  const drawn = costChart(width, state.metric, whole.length ? whole : systems);
  place.replaceChildren(...(drawn ?? ["These systems cost the same: they are of one run."]));
  return "Fused systems and fusions against the seconds of their runs, from reading data to the test. "
    + "What no other beats in both is numbered.";
}

function fusions(place, systems, width) {
  const shown = data.fusions.filter(fusion => systems.some(system => system.name === fusion.system));
  const charts = shown.map(({label, numbers}) => {
    const rows = numbers.map(([key, value]) => (
      {label: key, value, note: number(value), title: `${key}: ${number(value)}`}));
    const [low, high] = range([0, ...rows.map(row => row.value)]);
    const draw = (row, x, y) => bar(x(0), x(row.value), y, "var(--c2)");
    return h("div", {}, h("h3", {}, label), rowChart(Math.min(width, COLUMN), label, rows, low, high, 0, draw));
  });
  place.replaceChildren(h("div", {class: "grid"}, charts));
  return "What each fusion makes of the members: weights, or importances of its features; means over seeds.";
}

function curves(place, systems, width) {
  const points = system => data.curves[data.systems.indexOf(system)]?.[state.metric] ?? [];
  const all = systems.map(system => ({label: system.label, points: points(system)})).filter(line => line.points.length);
  if (!all.length) {
    place.replaceChildren();
    return `${state.metric} was not measured in validation.`;
  }
  const lines = all.slice(0, MOST_LINES);
  const sample = i => s("svg", {width: 28, height: 10, "aria-hidden": "true"}, s("path", {d: "M0,5H28", ...stroke(i)}));
  const legend = lines.map((line, i) => h("li", {}, sample(i), line.label));
  place.replaceChildren(curveChart(width, state.metric, lines), h("ul", {class: "legend"}, legend));
  const note = "On the validation part, at the end of each epoch, mean over the seeds that reached it.";
  return note + cut(all, MOST_LINES, "lines");
}

function lists(place) {
  const {users, items, entries, repeat} = data.lists;
  const names = Object.keys(entries);
  picked.left ??= names[0];
  picked.right ??= names[1] ?? names[0];
  const of = key => entries[picked[key]][picked.user] ?? [];
  const options = names.map(key => [key, data.systems[key].label]);
  const change = key => value => { picked[key] = value; lists(place); };
  const star = () => h("span", {role: "img", "aria-label": "liked in the test part"}, "★ ");
  const column = (key, other) => {
    const known = new Set(of(other).map(([item]) => item));
    const rows = of(key).map(([item, liked]) => (
      h("li", {}, h("span", {class: known.has(item) ? "both" : null}, liked ? star() : null, items[item]))));
    return h("div", {}, h("h3", {}, data.systems[picked[key]].label), h("ol", {}, rows));
  };
  const tools = [select("User", users.map((user, i) => [String(i), user]), picked.user, change("user")),
    select("Left", options, picked.left, change("left")), select("Right", options, picked.right, change("right"))];
  const columns = h("div", {class: "lists"}, column("left", "right"), column("right", "left"));
  place.replaceChildren(h("div", {class: "tools"}, tools), columns);
  return `Lists of one user, ${repeat}; ★ liked in the test part, shaded where both lists have the item.`;
}

function configurations(place) {
  const head = [["Configuration", "Seeds", "Tags"].map(text => th(text)), th("Weights", "number"),
    data.options.map(([option]) => th(option))];
  const body = data.groups.map((group, i) => [
    rowName(group.name), td(group.repeats.join("; "), "words"), td(group.tags.join(", ") || "–"),
    td(group.parameters?.toLocaleString("en") ?? "–", "number"),
    data.options.map(([, values]) => td(values[i], "words"))]);
  place.replaceChildren(table("Configurations", head, body));
  return data.options.length ? "Every option in which configurations differ." : "What was compared.";
}

"use strict";
// The page: its sections, and the controls above them.

function board(place, systems) {
  drawBoard(place, systems);
  return data.caption;
}

const costs = new Set(data.systems.map(system => system.seconds).filter(Boolean));
const SECTIONS = [
  ["Leaderboard", board, true],
  ["Metric by metric", bars, true],
  ["Seed by seed", seedBySeed, data.systems.length > 1],
  ["Slices", heat, data.slices.cuts.length],
  ["Quality and cost", cost, costs.size > 1],
  ["Fusions", fusions, data.fusions.length],
  ["Learning curves", curves, Object.keys(data.curves).length],
  ["Recommendations side by side", lists, data.lists !== null],
  ["Configurations", configurations, true],
];
const places = SECTIONS.filter(([, , there]) => there).map(([title, draw]) => {
  const [note, place] = [h("p", {class: "note"}), h("div", {})];
  const id = title.toLowerCase().replaceAll(" ", "-");
  document.getElementById("main").append(h("section", {"aria-labelledby": id}, h("h2", {id}, title), note, place));
  return [draw, note, place];
});

function matches(system) {
  const words = state.text.toLowerCase().split(/\s+/);
  return (!state.group || system.group === state.group) && (!state.tag || system.tags.includes(state.tag))
    && words.every(word => system.name.toLowerCase().includes(word));
}

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
  element.closest("label").hidden = element.tagName === "SELECT" && element.options.length < 2;
  element.addEventListener("input", () => {
    state[id] = element.value;
    drawAll();
  });
}

document.getElementById("summary").textContent = data.summary;
document.getElementById("warnings").append(...data.warnings.map(warning => h("li", {}, warning)));
document.getElementById("warnings").hidden = !data.warnings.length;
document.getElementById("controls").addEventListener("submit", event => event.preventDefault());
control("text", []);
control("group", data.groups.length > 1 ? [["", "all"], ...data.groups.map(group => [group.name, group.name])] : []);
control("tag", data.tags.length ? [["", "all"], ...data.tags.map(tag => [tag, tag])] : []);
control("metric", data.metrics.map(metric => [metric.name, metric.name]));
drawAll();

let known = document.body.clientWidth;
new ResizeObserver(() => {
  if (known === document.body.clientWidth) return;
  known = document.body.clientWidth;
  requestAnimationFrame(drawAll);
}).observe(document.body);

"use strict";
// Elements are made from text nodes and attributes alone: names come from data and must stay text.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if ((value ?? false) !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== ""));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const minus = text => text.replace("-", "−");
const number = value => minus(value.toFixed(4));
const signed = value => (value > 0 ? "+" : "") + number(value);
const chance = p => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(4)}`);
function seconds(value) {
  if (value < 100) return `${value.toFixed(0)} s`;
  return value < 6000 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 1 2"];
/** Tell lines apart by colour and by dash. */
const stroke = i => ({fill: "none", stroke: `var(--c${i})`, "stroke-width": 2, "stroke-dasharray": DASHES[i]});

const GLYPH = 7.1; // a generous width of a character at 12 px

/** Cut the middle out of a text that is wider than about `width` pixels at 12 px. */
function clip(text, width) {
  const room = Math.max(4, Math.floor(width / GLYPH));
  if (text.length <= room) return text;
  return `${text.slice(0, Math.ceil(room / 2) - 1)}…${text.slice(-Math.floor(room / 2))}`;
}

/** Give round steps that cover [low, high], about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(m => m >= raw);
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) + (step / power === 2.5 ? 1 : 0);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const values = Array.from({length: last - first + 1}, (_, i) => (first + i) * step);
  return values.map(value => [value, minus((value || 0).toFixed(places))]);
}
const linear = (low, high, from, to) => value => from + (value - low) / (high - low || 1) * (to - from);

function chart(width, height, title, ...children) {
  return s("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title}, children);
}

const th = (text, kind) => h("th", {scope: "col", class: kind}, text);
const td = (text, kind) => h("td", {class: kind}, text);
const rowName = text => h("th", {scope: "row"}, text);
/** A table that scrolls inside its box; rows are lists of cells. */
function table(label, head, body, id) {
  const rows = cells => cells.map(row => h("tr", {}, row));
  return h("div", {class: "box", tabindex: 0, role: "region", "aria-label": label},
    h("table", {id}, h("thead", {}, rows([head])), h("tbody", {}, rows(body))));
}
function select(label, options, value, onchange) {
  const element = h("select", {onchange: event => onchange(event.target.value)},
    options.map(([key, text]) => h("option", {value: key, selected: key === value}, text)));
  return h("label", {}, label, element);
}

"use strict";
// Elements are made from text nodes and attributes alone: names come from data and must stay text.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
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
const seconds = value => (value < 100 ? `${value.toFixed(0)} s` : value < 6000 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`);
const colour = place => `var(--c${Math.min(place, 7)})`;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 1 2"];

const GLYPH = 7.1; // a generous width of a character at 12 px

/** Cut a text to about `width` pixels at 12 px. */
function clip(text, width) {
  const room = Math.max(4, Math.floor(width / GLYPH));
  return text.length <= room ? text : text.slice(0, room - 1) + "…";
}

/** Give round steps that cover [low, high], about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(m => m >= raw);
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) + (step / power === 2.5 ? 1 : 0);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({length: last - first + 1}, (_, i) => ((first + i) * step)).map(v => [v, minus((v || 0).toFixed(places))]);
}
const linear = (low, high, from, to) => value => from + (value - low) / (high - low || 1) * (to - from);

function chart(width, height, title, ...children) {
  return s("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title}, children);
}
function select(label, options, value, onchange) {
  const element = h("select", {onchange: event => onchange(event.target.value)},
    options.map(([key, text]) => h("option", {value: key, selected: key === value}, text)));
  return h("label", {}, label, element);
}

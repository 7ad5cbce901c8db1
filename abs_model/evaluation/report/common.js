"use strict";

// What all parts share: the content, making elements, and writing numbers.

const content = JSON.parse(document.getElementById("content").textContent);
const NONE = "–";
const numModels = content.models.length;

/* An element with attributes and children; text never becomes HTML. A function is a listener. */
function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/* A name that may be broken behind underscores and the like. */
function breakable(name) {
  return name.split(/(?<=[_.+-])/).flatMap((part) => [element("wbr"), part]).slice(1);
}

function byId(id) {
  return document.getElementById(id);
}

/* Like C's %g with so many digits. */
function general(value, digits) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 10 ** digits) return String(Number(value.toPrecision(digits)));
  return size < 1e-4 ? value.toExponential(digits - 1) : String(Math.round(value));
}

/* A distance in a norm, by its position; null is infinite: beyond what was searched. */
function distance(value, norm, { digits = 3, limit = null } = {}) {
  if (value === null) return limit === null ? "∞" : `>${general(limit, 6)}`;
  if (content.norms[norm].key === "l0") return general(value, 4);
  // Zeros at the end stay, so that figures below each other are alike.
  return value >= 1e-4 && value < 10 ** digits ? value.toPrecision(digits) : general(value, digits);
}

/* A published distance, as it was printed. */
function publishedDistance(value, norm) {
  return general(value, content.norms[norm].key === "l0" ? 4 : 3);
}

function percent(value, digits = 0) {
  return value === null ? NONE : `${(100 * value).toFixed(digits)}%`;
}

function count(value) {
  return Math.round(value).toLocaleString("en-US");
}

function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function unitOf(norm) {
  return content.norms[norm].unit;
}

function atThreshold(norm) {
  return `at ${general(content.norms[norm].threshold, 6)}${unitOf(norm)}`;
}

/* Subscripts for the norms that have a symbol. */
function normName(norm) {
  const symbols = { l2: "2", linf: "∞", l0: "0" };
  const { key, name } = content.norms[norm];
  return key in symbols ? ["L", element("sub", {}, symbols[key])] : [name];
}

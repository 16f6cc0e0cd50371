// Conditions on results. What the panel has no field for is kept as KEY=VALUE.

import { $, icon, make } from "./dom.js";
import { percent } from "./words.js";

const SINGLE = { after: "#after", tag: "#tag", path: "#path" };
const NAMES = { image: "pictures", video: "clips", audio: "sounds", text: "texts" };

export class Filters {
  constructor(panel, conditions, changed) {
    this._panel = panel;
    this._conditions = conditions;
    this._changed = changed;
    this.where = [];
    this.relevance = 0;
    this.duplicates = false;
    const late = debounced(() => this._read(), 350);
    panel.addEventListener("input", (event) => {
      this._tellSure();
      if (["text", "range"].includes(event.target.type)) late();
      else this._read();
    });
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target.type === "text") this._read();
    });
  }

  show(state) {
    this.where = state.where;
    this.relevance = state.relevance;
    this.duplicates = state.duplicates;
    const rest = [];
    const found = { modality: "", after: "", before: "", tag: "", path: "" };
    for (const condition of state.where) {
      const [key, value] = split(condition);
      if (key in found && !found[key]) found[key] = value;
      else rest.push(condition);
    }
    for (const radio of this._panel.querySelectorAll("[name=modality]")) radio.checked = radio.value === found.modality;
    for (const [key, selector] of Object.entries(SINGLE)) set(selector, found[key]);
    set("#until", found.before ? shifted(found.before, -1) : "");
    set("#field", rest.join(" & "));
    $("#relevance").value = String(state.relevance);
    $("#duplicates").checked = state.duplicates;
    this._tellSure();
    this._showConditions();
  }

  reset() {
    this._changed({ where: [], relevance: 0, duplicates: false });
  }

  allowPaths(allowed) {
    $(".path", this._panel).hidden = !allowed;
  }

  _read() {
    const where = [];
    const kind = this._panel.querySelector("[name=modality]:checked")?.value;
    if (kind) where.push(`modality=${kind}`);
    for (const [key, selector] of Object.entries(SINGLE)) {
      const value = $(selector).value.trim();
      if (value) where.push(`${key}=${value}`);
    }
    if ($("#until").value) where.push(`before=${shifted($("#until").value, 1)}`);
    for (const condition of $("#field").value.split("&")) {
      if (/^[^=]+=.+$/.test(condition.trim())) where.push(condition.trim());
    }
    this._changed({ where, relevance: Number($("#relevance").value), duplicates: $("#duplicates").checked });
  }

  _tellSure() {
    const value = Number($("#relevance").value);
    $("output[for=relevance]").textContent = value ? `at least ${percent(value / 100)}` : "any";
  }

  _showConditions() {
    const chips = this.where.map((condition) => chip(inWords(condition), () => {
      this._changed({ where: this.where.filter((other) => other !== condition) });
    }));
    if (this.relevance) chips.push(chip(`at least ${percent(this.relevance / 100)}`, () => this._changed({ relevance: 0 })));
    if (this.duplicates) chips.push(chip("duplicates once", () => this._changed({ duplicates: false })));
    this._conditions.replaceChildren(...chips);
    this._conditions.hidden = !chips.length;
  }
}

function chip(words, remove) {
  return make("li", { class: "condition" }, make("span", {}, words), make("button", { type: "button", "aria-label": `Remove the filter ${words}`, title: "Remove", on: { click: remove } }, icon("close")));
}

function inWords(condition) {
  const [key, value] = split(condition);
  if (key === "modality") return NAMES[value] ?? value;
  if (key === "after") return `from ${value}`;
  if (key === "before") return `to ${shifted(value, -1)}`;
  if (key === "tag") return `#${value}`;
  if (key === "path") return value;
  return `${key} = ${value}`;
}

function split(condition) {
  const at = condition.indexOf("=");
  return [condition.slice(0, at), condition.slice(at + 1)];
}

// The service's end of a time is the first moment after it; people mean the last day within.
function shifted(text, days) {
  const date = new Date(`${text}T00:00:00Z`);
  if (Number.isNaN(date.getTime())) return text;
  date.setUTCDate(date.getUTCDate() + days);
  return date.toISOString().slice(0, 10);
}

function set(selector, value) {
  const field = $(selector);
  if (document.activeElement !== field && field.value !== value) field.value = value;
}

export function debounced(call, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), ms);
  };
}

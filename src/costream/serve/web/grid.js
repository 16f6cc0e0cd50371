// A grid of any length that holds only what is on the screen, plus a little.

import { thumbnail } from "./api.js";
import { button, icon, make } from "./dom.js";
import { clock, day, nearness } from "./words.js";

const AHEAD = 1.2; // screens kept above and below
const SETTLE_MS = 70; // results that only fly past are not fetched

export class Grid {
  constructor(element, { open, more, add, link }) {
    this.element = element;
    this.source = null;
    this.active = 0;
    this._open = open;
    this._more = more;
    this._add = add;
    this._link = link;
    this._size = 180;
    this._tiles = new Map();
    this._frame = 0;
    this._timer = 0;
    const draw = () => this.draw();
    addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(() => this._layout()).observe(element);
  }

  show(source) {
    this.source = source;
    for (const tile of this._tiles.values()) tile.remove();
    this._tiles.clear();
    this.active = Math.min(this.active, Math.max(0, source.total - 1));
    this._layout();
  }

  // New results of the same source have come.
  refresh() {
    for (const [index, tile] of this._tiles) {
      if (tile.dataset.waiting && this.source.at(index)) {
        this._tiles.get(index).replaceWith(this._fill(index, tile));
      }
    }
    this._layout();
  }

  resize(px) {
    const first = this._first();
    const within = first === null ? 0 : this._top(first) - scrollY;
    this._size = px;
    this._layout();
    if (first !== null && scrollY > 0) scrollTo(0, this._top(first) - within);
  }

  get columns() {
    return this._columns ?? 1;
  }

  // Make one result the one that keys act on.
  focus(index, { scroll = true, take = true } = {}) {
    if (!this.source?.total) return;
    this.active = Math.min(Math.max(index, 0), this.source.total - 1);
    if (scroll) this._reveal(this.active);
    this.draw(true);
    for (const [number, tile] of this._tiles) this._mark(number, tile);
    if (take) this._tiles.get(this.active)?.querySelector(".open")?.focus({ preventScroll: true });
  }

  get hasFocus() {
    return this.element.contains(document.activeElement);
  }

  draw(now = false) {
    if (now) return this._draw();
    if (!this._frame) {
      this._frame = requestAnimationFrame(() => {
        this._frame = 0;
        this._draw();
      });
    }
    return undefined;
  }

  _layout() {
    if (!this.source) return;
    const width = this.element.clientWidth;
    if (!width) return;
    const gap = width < 600 ? 4 : 10;
    this._gap = gap;
    this._columns = Math.max(width < 600 ? 2 : 1, Math.floor((width + gap) / (this._size + gap)));
    this._tile = (width - gap * (this._columns - 1)) / this._columns;
    const rows = Math.ceil(this.source.total / this._columns);
    this.element.style.height = `${Math.max(0, rows * (this._tile + gap) - gap)}px`;
    this.element.style.setProperty("--tile", `${this._tile}px`);
    this.element.classList.toggle("named", this._tile >= 150);
    this.element.classList.toggle("roomy", this._tile >= 205);
    for (const [index, tile] of this._tiles) this._place(index, tile);
    this.draw(true);
  }

  _top(index) {
    const row = Math.floor(index / this._columns);
    return this.element.getBoundingClientRect().top + scrollY + row * (this._tile + this._gap);
  }

  _first() {
    if (!this.source?.total || !this._tile) return null;
    const above = Math.max(0, -this.element.getBoundingClientRect().top);
    return Math.floor(above / (this._tile + this._gap)) * this._columns;
  }

  _reveal(index) {
    const top = this._top(index);
    const bar = document.querySelector(".bar").offsetHeight + 12;
    if (top < scrollY + bar) scrollTo(0, top - bar);
    else if (top + this._tile > scrollY + innerHeight - 12) scrollTo(0, top + this._tile - innerHeight + 12);
  }

  _draw() {
    if (!this.source || !this._tile) return;
    const pitch = this._tile + this._gap;
    const above = -this.element.getBoundingClientRect().top;
    const margin = innerHeight * AHEAD;
    const firstRow = Math.max(0, Math.floor((above - margin) / pitch));
    const lastRow = Math.ceil((above + innerHeight + margin) / pitch);
    const first = firstRow * this._columns;
    const last = Math.min(this.source.total, (lastRow + 1) * this._columns) - 1;
    for (const [index, tile] of this._tiles) {
      if ((index < first || index > last) && !tile.contains(document.activeElement)) {
        tile.remove();
        this._tiles.delete(index);
      }
    }
    const fresh = [];
    for (let index = first; index <= last; index += 1) {
      if (!this._tiles.has(index)) fresh.push(this._fill(index));
    }
    this.element.append(...fresh);
    clearTimeout(this._timer);
    if (last >= first) this._timer = setTimeout(() => this.source.ensure(first, last), SETTLE_MS);
  }

  _place(index, tile) {
    const row = Math.floor(index / this._columns);
    const column = index % this._columns;
    const pitch = this._tile + this._gap;
    tile.style.transform = `translate(${column * pitch}px, ${row * pitch}px)`;
    tile.setAttribute("aria-posinset", String(index + 1));
    tile.setAttribute("aria-setsize", String(this.source.total));
  }

  _mark(index, tile) {
    const active = index === this.active;
    tile.classList.toggle("active", active);
    for (const control of tile.querySelectorAll("a, button")) control.tabIndex = active ? 0 : -1;
  }

  _fill(index, old) {
    const result = this.source.at(index);
    const tile = make("div", { class: "tile", role: "listitem" });
    if (result) this._dress(tile, result, index);
    else tile.dataset.waiting = "1";
    this._place(index, tile);
    this._mark(index, tile);
    this._tiles.set(index, tile);
    if (old?.contains(document.activeElement)) queueMicrotask(() => this.focus(index, { scroll: false }));
    return tile;
  }

  _dress(tile, result, index) {
    const near = nearness(result);
    const size = this._tile * devicePixelRatio > 360 ? 640 : 320;
    const open = make("a", {
      class: "open",
      href: this._link(result),
      "aria-label": near ? `${result.name}, ${near}` : result.name,
      on: {
        click: (event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          this.active = index;
          this._open(index);
        },
        focus: () => {
          if (this.active !== index) this.focus(index, { scroll: false, take: false });
        },
      },
    });
    if (result.thumbnail) open.append(this._picture(tile, result, size));
    else tile.classList.add("bare");
    if (result.modality === "video") open.append(make("span", { class: "kind" }, icon("play"), span(result)));
    if (result.modality === "audio") open.append(make("span", { class: "kind" }, icon("sound"), span(result)));
    if (result.duplicates?.length) {
      open.append(make("span", { class: "more", title: "near-duplicates, shown once" }, `+${result.duplicates.length}`));
    }
    tile.append(open, this._footer(result, near), this._actions(result));
    if (typeof result.relevance === "number") tile.style.setProperty("--near", String(result.relevance));
  }

  _picture(tile, result, size) {
    const picture = make("img", { alt: "", decoding: "async", draggable: false });
    picture.addEventListener("load", () => tile.classList.add("shown"));
    picture.addEventListener("error", () => {
      picture.remove();
      tile.classList.add("bare", "gone");
    });
    picture.src = thumbnail(result, size);
    if (picture.complete && picture.naturalWidth) tile.classList.add("shown", "at-once");
    return picture;
  }

  _footer(result, near) {
    const right = near || (result.date ? day(result.date) : "");
    return make("div", { class: "foot", "aria-hidden": "true" }, make("span", { class: "name" }, result.name), make("span", { class: "near" }, right));
  }

  _actions(result) {
    return make(
      "div",
      { class: "actions" },
      make("button", { type: "button", class: "like", title: "More like this (m)", on: { click: () => this._more(result) } }, icon("like"), make("span", {}, "More like this")),
      button("Add to the question (+)", "plus", () => this._add(result, 1)),
      button("Take away from the question (−)", "minus", () => this._add(result, -1)),
    );
  }
}

function span(result) {
  const start = result.span?.[0];
  return typeof start === "number" ? clock(start) : "";
}

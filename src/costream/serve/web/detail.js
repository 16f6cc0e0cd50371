// One result, closely: the picture, why it is here, and where to go from it.

import { explain, thumbnail } from "./api.js";
import { button, icon, make } from "./dom.js";
import { paint } from "./heat.js";
import { chooseRegion } from "./region.js";
import { bytes, clock, moment, percent } from "./words.js";

const STAGES = { vectors: "looks like it", words: "words in name, caption, tags", fused: "both rankings together", named: "its very name" };
const INTERNAL = new Set(["perceptual_hash"]); // of no use to people

export class Detail {
  constructor(dialog, actions) {
    this.dialog = dialog;
    this.result = null;
    this._actions = actions; // close, step, more, add, region, terms, explains
    this._heat = false;
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      actions.close();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.classList.contains("stage")) actions.close();
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  close() {
    if (this.dialog.open) this.dialog.close();
    this.dialog.replaceChildren();
    this.result = null;
  }

  show(result, { before, after }) {
    if (this.result?.id === result.id && this.dialog.open) return;
    this.result = result;
    this._heat = false;
    const stage = this._stage(result);
    const previous = button("Previous (←)", "left", () => this._actions.step(-1), { class: "step left" });
    const next = button("Next (→)", "right", () => this._actions.step(1), { class: "step right" });
    previous.hidden = !before;
    next.hidden = !after;
    const close = button("Close (Esc)", "close", () => this._actions.close(), { class: "tool shut" });
    this.dialog.setAttribute("aria-label", result.name);
    this.dialog.replaceChildren(make("div", { class: "view" }, stage, previous, next, close), this._side(result));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.focus();
  }

  async toggleHeat() {
    const result = this.result;
    const frame = this.dialog.querySelector(".frame");
    const control = this.dialog.querySelector(".heat");
    if (!result || !frame || !control || control.disabled) return;
    const old = frame.querySelector("canvas");
    if (old) {
      old.remove();
      control.setAttribute("aria-pressed", "false");
      return;
    }
    control.disabled = true;
    control.classList.add("busy");
    try {
      const found = await explain(result.id, this._actions.terms());
      if (this.result === result) {
        frame.append(paint(found));
        control.setAttribute("aria-pressed", "true");
      }
    } catch (error) {
      this._say(error.message);
    } finally {
      control.disabled = false;
      control.classList.remove("busy");
    }
  }

  open() {
    if (this.result?.original) window.open(this.result.original, "_blank", "noopener");
  }

  _say(words) {
    const place = this.dialog.querySelector(".said");
    if (place) place.textContent = words;
  }

  _stage(result) {
    const frame = make("div", { class: "frame" });
    const stage = make("div", { class: "stage" }, frame);
    if (result.modality === "video" || result.modality === "audio") frame.append(player(result));
    else if (result.thumbnail) this._picture(frame, result);
    else frame.append(make("div", { class: "nothing" }, icon("gone"), make("p", {}, "This item has no file.")));
    return stage;
  }

  _picture(frame, result) {
    const picture = make("img", { class: "large", alt: result.caption || result.name, draggable: false });
    picture.addEventListener("error", () => {
      frame.replaceChildren(make("div", { class: "nothing" }, icon("gone"), make("p", {}, "The file is gone, or is no picture any more.")));
    });
    picture.style.backgroundImage = `url("${new URL(thumbnail(result, 320), document.baseURI)}")`;
    picture.src = thumbnail(result, 1600);
    frame.append(picture);
    chooseRegion(frame, picture, (region) => this._actions.region(result, region));
  }

  _side(result) {
    const side = make("div", { class: "side" }, make("h2", {}, result.name));
    if (result.date) side.append(make("p", { class: "when" }, moment(result.date)));
    if (result.caption) side.append(make("p", { class: "caption" }, result.caption));
    side.append(this._buttons(result), make("p", { class: "said", role: "status" }));
    if (result.span && typeof result.span[0] === "number") {
      side.append(section("Moment", make("p", {}, `${clock(result.span[0])} to ${clock(result.span[1] ?? result.span[0])}`)));
    }
    const why = reasons(result);
    if (why) side.append(why);
    if (result.tags?.length) {
      const tags = result.tags.map((tag) => make("button", { type: "button", class: "tag", title: "Only these", on: { click: () => this._actions.tag(tag) } }, tag));
      side.append(section("Tags", make("div", { class: "tags" }, ...tags)));
    }
    side.append(facts(result));
    return side;
  }

  _buttons(result) {
    const row = make(
      "div",
      { class: "doing" },
      make("button", { type: "button", class: "solid", title: "m", on: { click: () => this._actions.more(result) } }, icon("like"), "More like this"),
      button("Add to the question (+)", "plus", () => this._actions.add(result, 1), { class: "tool edged plus" }),
      button("Take away from the question (−)", "minus", () => this._actions.add(result, -1), { class: "tool edged minus" }),
    );
    if (result.original) row.append(make("a", { class: "tool edged", href: result.original, target: "_blank", rel: "noopener", title: "Open the file (o)", "aria-label": "Open the file" }, icon("open")));
    row.append(button("Copy a link to this", "link", () => this._copy(), { class: "tool edged" }));
    if (this._actions.explains() && result.modality === "image" && result.thumbnail) {
      row.append(button("Where does it match? (w)", "heat", () => this.toggleHeat(), { class: "tool edged heat", "aria-pressed": "false" }));
    }
    return row;
  }

  async _copy() {
    try {
      await navigator.clipboard.writeText(location.href);
      this._say("The link is copied.");
    } catch {
      this._say(location.href);
    }
  }
}

function player(result) {
  const tag = result.modality === "video" ? "video" : "audio";
  const [start, end] = result.span ?? [];
  const when = typeof start === "number" ? `#t=${start}${typeof end === "number" ? `,${end}` : ""}` : "";
  const element = make(tag, { class: "large", src: `${result.original}${when}`, controls: true, preload: "metadata" });
  if (tag === "video") element.poster = thumbnail(result, 640);
  return element;
}

function reasons(result) {
  const rows = [];
  if (typeof result.relevance === "number") rows.push(bar("relevant", result.relevance, percent(result.relevance)));
  const stages = Object.entries(result.reasons ?? {});
  const most = Math.max(1e-9, ...stages.map(([, score]) => Math.abs(score)));
  for (const [stage, score] of stages) {
    const share = Math.abs(score) <= 1 ? Math.max(0, score) : Math.max(0, score) / most;
    rows.push(bar(STAGES[stage] ?? stage, share, stage === "named" ? "yes" : score.toFixed(3)));
  }
  if (!rows.length) return null;
  const rank = result.rank ? `number ${result.rank}` : "";
  return section(`Why it is here${rank ? `: ${rank}` : ""}`, make("div", { class: "reasons" }, ...rows));
}

function bar(name, share, words) {
  const row = make("div", { class: "reason" }, make("span", {}, name), make("b", {}, words), make("i", {}));
  row.style.setProperty("--share", String(Math.min(1, Math.max(0, share))));
  return row;
}

function facts(result) {
  const list = make("dl", { class: "facts" });
  const add = (name, value) => value && list.append(make("dt", {}, name), make("dd", {}, value));
  add("File", result.path);
  add("Size", result.size_bytes ? bytes(result.size_bytes) : "");
  for (const [name, value] of flat(result.meta ?? {})) if (!INTERNAL.has(name)) add(name, value);
  return list.childElementCount ? section("Details", list) : make("span");
}

function* flat(value, name = "") {
  for (const [key, inner] of Object.entries(value)) {
    const path = name ? `${name}.${key}` : key;
    if (inner !== null && typeof inner === "object" && !Array.isArray(inner)) yield* flat(inner, path);
    else yield [path, Array.isArray(inner) ? inner.join(", ") : String(inner)];
  }
}

function section(title, ...children) {
  return make("section", {}, make("h3", {}, title), ...children);
}


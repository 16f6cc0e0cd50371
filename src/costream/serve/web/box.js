// The question: the words in the box, and its further parts as chips that can be turned and removed.

import { item, thumbnail } from "./api.js";
import { $, icon, make } from "./dom.js";
import { fromUrlBase64 } from "./state.js";

export class Box {
  constructor(form, changed) {
    this.input = $("#query", form);
    this._chips = $(".chips", form);
    this._clear = $(".clear", form);
    this._changed = changed;
    this._items = new Map();
    this.terms = [];
    this.input.addEventListener("input", () => {
      this._update();
      changed({ typing: true });
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Backspace" && !this.input.value && this.terms.length) {
        event.preventDefault();
        this.remove(this.terms.length - 1);
      }
    });
  }

  get words() {
    return this.input.value;
  }

  show(state) {
    if (this.input.value !== state.q) this.input.value = state.q;
    this.terms = state.terms;
    this._chips.replaceChildren(...this.terms.map((term, number) => this._chip(term, number)));
    this._update();
  }

  add(term) {
    this.terms = [...this.terms, term];
    this._changed({});
  }

  remove(number) {
    this.terms = this.terms.filter((_, other) => other !== number);
    this._changed({});
    this.input.focus();
  }

  // A new part is written where it will stand.
  write(sign) {
    const chip = make("li", { class: `chip writing ${sign === 1 ? "plus" : "minus"}` }, icon(sign === 1 ? "plus" : "minus"));
    const field = make("input", { type: "text", maxLength: 1000, size: 10, placeholder: sign === 1 ? "also" : "without", "aria-label": sign === 1 ? "Also like" : "Not like", enterkeyhint: "done" });
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const value = field.value.trim();
      chip.remove();
      if (keep && value) this.add({ kind: "text", value, sign });
      this.input.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        finish(true);
      } else if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    field.addEventListener("blur", () => finish(true));
    chip.append(field);
    this._chips.append(chip);
    field.focus();
  }

  _turn(number) {
    this.terms = this.terms.map((term, other) => (other === number ? { ...term, sign: -term.sign } : term));
    this._changed({});
  }

  _chip(term, number) {
    const words = term.sign === 1 ? "Also" : "Without";
    const turn = make("button", {
      type: "button",
      class: "turn",
      title: term.sign === 1 ? "Take it away instead" : "Add it instead",
      on: { click: () => this._turn(number) },
    }, icon(term.sign === 1 ? "plus" : "minus"));
    const label = make("span", { class: "label" });
    const remove = make("button", { type: "button", class: "remove", title: "Remove", on: { click: () => this.remove(number) } }, icon("close"));
    this._label(term, label, (name) => {
      turn.setAttribute("aria-label", `${words} ${name}; turn around`);
      remove.setAttribute("aria-label", `Remove ${name}`);
    });
    return make("li", { class: `chip ${term.sign === 1 ? "plus" : "minus"}` }, turn, label, remove);
  }

  _label(term, label, named) {
    if (term.kind === "text") {
      label.textContent = term.value;
      named(term.value);
    } else if (term.kind === "image") {
      label.append(make("img", { alt: "your picture", src: `data:image/jpeg;base64,${fromUrlBase64(term.value)}` }));
      named("your picture");
    } else {
      named("a picture");
      this._item(term.value).then((found) => {
        if (!found) {
          label.textContent = "no longer there";
          return;
        }
        if (found.thumbnail) label.append(make("img", { alt: found.name, src: thumbnail(found, 320), title: found.name }));
        else label.textContent = found.name;
        named(found.name);
      });
    }
  }

  _item(id) {
    if (!this._items.has(id)) this._items.set(id, item(id).catch(() => null));
    return this._items.get(id);
  }

  _update() {
    this._clear.hidden = !this.input.value && !this.terms.length;
    const room = matchMedia("(min-width: 761px)").matches;
    const empty = room ? "Describe a picture, or drop one here" : "Describe a picture";
    this.input.placeholder = this.terms.length ? "and in words" : empty;
  }
}

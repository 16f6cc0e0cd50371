// A part of a picture, drawn with the mouse or a finger, to search by.

import { icon, make } from "./dom.js";

const LEAST_PX = 16;

export function chooseRegion(frame, picture, chosen) {
  let start = null;
  let box = null;
  const place = (event) => {
    const bounds = picture.getBoundingClientRect();
    const share = (value, from, size) => Math.min(1, Math.max(0, (value - from) / size));
    return [share(event.clientX, bounds.left, bounds.width), share(event.clientY, bounds.top, bounds.height)];
  };
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch") return;
    start = place(event);
    picture.setPointerCapture(event.pointerId);
    frame.querySelector(".region")?.remove();
    box = null;
  });
  picture.addEventListener("pointermove", (event) => {
    if (!start) return;
    const region = between(start, place(event));
    const wide = (region[2] - region[0]) * picture.clientWidth;
    const high = (region[3] - region[1]) * picture.clientHeight;
    if (!box && Math.max(wide, high) < LEAST_PX) return;
    if (!box) {
      box = make("div", { class: "region" });
      frame.append(box);
    }
    box.region = region;
    Object.assign(box.style, { left: `${100 * region[0]}%`, top: `${100 * region[1]}%`, width: `${100 * (region[2] - region[0])}%`, height: `${100 * (region[3] - region[1])}%` });
  });
  picture.addEventListener("pointerup", () => {
    start = null;
    if (!box) return;
    const region = box.region;
    box.append(make("button", { type: "button", class: "solid", on: { click: () => chosen(region) } }, icon("search"), "Search this part"));
    box.querySelector("button").focus();
  });
}

function between([left, top], [right, bottom]) {
  return [Math.min(left, right), Math.min(top, bottom), Math.max(left, right), Math.max(top, bottom)];
}

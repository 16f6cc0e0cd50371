// Everything by keyboard.

const TYPING = "input:not([type=range]):not([type=radio]):not([type=checkbox]), textarea, select";

export function startKeys(page) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const other = document.querySelector("dialog.sheet[open]");
    if (other) return;
    const typing = event.target.matches?.(TYPING);
    const handled = page.detail.isOpen ? inDetail(page, event) : typing ? whileTyping(page, event) : inGrid(page, event);
    if (handled) event.preventDefault();
  });
}

function common(page, key) {
  const result = page.current();
  if (key === "?") page.help();
  else if (key === "/") {
    page.close();
    page.box.input.focus();
    page.box.input.select();
  } else if (!result) return false;
  else if (key === "m") page.more(result);
  else if (key === "+") page.add(result, 1);
  else if (key === "-" || key === "−") page.add(result, -1);
  else if (key === "o" && result.original) window.open(result.original, "_blank", "noopener");
  else return false;
  return true;
}

function inDetail(page, { key, target }) {
  if (target.matches?.("video, audio, input")) return false;
  if (key === "ArrowLeft" || key === "ArrowUp") page.step(-1);
  else if (key === "ArrowRight" || key === "ArrowDown") page.step(1);
  else if (key === "w") page.detail.toggleHeat();
  else return common(page, key);
  return true;
}

function whileTyping(page, { key, target }) {
  if (target !== page.box.input) return false;
  if (key === "ArrowDown") page.grid.focus(page.grid.active);
  else if (key === "Escape" && page.panel()) page.closePanel();
  else if (key === "Escape" && target.value) page.clear();
  else if (key === "Escape") target.blur();
  else return false;
  return true;
}

function inGrid(page, { key }) {
  const { grid } = page;
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns, Home: -Infinity, End: Infinity };
  if (key in moves) {
    const to = grid.active + moves[key];
    if (!grid.hasFocus && Math.abs(moves[key]) <= grid.columns) grid.focus(grid.active);
    else if (key === "ArrowUp" && to < 0) page.box.input.focus();
    else if (Math.abs(moves[key]) !== grid.columns || (to >= 0 && to < grid.source.total)) grid.focus(to);
    return true;
  }
  if (key === "Escape") {
    if (page.panel()) page.closePanel();
    else page.clear();
    return true;
  }
  return common(page, key);
}

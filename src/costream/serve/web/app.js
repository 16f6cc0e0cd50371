// The page: one state, shown; every change of it goes into the URL and is shown from there.

import { about, begin, item, Refusal, thumbnail } from "./api.js";
import { Box } from "./box.js";
import { Detail } from "./detail.js";
import { $, make } from "./dom.js";
import { debounced, Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { startKeys } from "./keys.js";
import { NoPicture, pictureIn, shrink } from "./pictures.js";
import { Source } from "./source.js";
import { EMPTY, fromHash, isQuestion, toHash, toRequest } from "./state.js";
import { startTheme } from "./theme.js";
import { count, duration } from "./words.js";

const TYPING_MS = 120;

let state = fromHash(location.hash);
let info = null;
let source = null;

const box = new Box($(".box"), ({ typing }) => change({ q: box.words, terms: box.terms }, { typing }));
const filters = new Filters($("#filters"), $(".conditions"), (values) => change(values, { typing: true }));
const detail = new Detail($(".detail"), {
  close: () => change({ open: "" }),
  step: (by) => step(by),
  more: (result) => more(result),
  add: (result, sign) => add(result, sign),
  region: (result, region) => searchPart(result, region),
  tag: (tag) => change({ ...EMPTY, where: [`tag=${tag}`] }),
  terms: () => toRequest(state)?.terms ?? [],
  explains: () => Boolean(info?.explains) && isQuestion(state),
});
const grid = new Grid($("#results"), {
  open: (index) => change({ open: source.at(index)?.id ?? "" }),
  more: (result) => more(result),
  add: (result, sign) => add(result, sign),
  link: (result) => toHash({ ...state, open: result.id }),
});

// --- changing the state ---

const later = debounced(() => search(), TYPING_MS);

function change(values, { typing = false } = {}) {
  const before = toHash({ ...state, open: "" });
  state = { ...state, ...values };
  const hash = toHash(state);
  // Each letter is no step to go back to; everything else is.
  if (typing) history.replaceState(null, "", hash);
  else if (hash !== location.hash) history.pushState(null, "", hash);
  show({ research: toHash({ ...state, open: "" }) !== before, typing });
}

function show({ research, typing }) {
  box.show(state);
  filters.show(state);
  $("#sort").value = state.sort;
  $("#sort").options[0].textContent = isQuestion(state) ? "Best first" : "As indexed";
  $("#sort").options[0].hidden = !isQuestion(state);
  if (!isQuestion(state) && state.sort === "relevance") $("#sort").value = "date-descending";
  document.title = state.q ? `${state.q} · costream` : "costream";
  if (research && typing) later();
  else if (research) search();
  else showDetail();
}

function more(result) {
  change({ ...EMPTY, terms: [{ kind: "like", value: result.id, sign: 1 }], where: state.where, duplicates: state.duplicates });
  scrollTo(0, 0);
}

function add(result, sign) {
  change({ open: "", terms: [...state.terms, { kind: "like", value: result.id, sign }] });
  scrollTo(0, 0);
}

async function searchBy(blob, region) {
  try {
    const value = await shrink(blob, region);
    change({ open: "", terms: [...state.terms, { kind: "image", value, sign: 1 }] });
    scrollTo(0, 0);
  } catch (error) {
    if (!(error instanceof NoPicture)) throw error;
    tell(error.message);
  }
}

async function searchPart(result, region) {
  const response = await fetch(thumbnail(result, 1600));
  state = { ...state, q: "", terms: [] };
  await searchBy(await response.blob(), region);
}

// --- searching ---

async function search() {
  source?.stop();
  const asked = new Source(state, arrived, failed);
  source = asked;
  $(".progress").hidden = false;
  $("#results").classList.add("stale");
  await asked.start();
}

function arrived(from) {
  if (from !== source) return;
  tell("");
  const fresh = grid.source !== source;
  if (fresh) {
    grid.active = 0;
    grid.show(source);
  } else {
    grid.refresh();
  }
  $(".progress").hidden = true;
  $("#results").classList.remove("stale");
  summarise();
  if (fresh) showDetail();
}

function failed(error) {
  $(".progress").hidden = true;
  $("#results").classList.remove("stale");
  if (error instanceof Refusal && error.status === 401) askKey();
  else if (error instanceof Refusal) tell(error.message, error.hint);
  else throw error;
}

function summarise() {
  const answer = source.answer;
  const notice = $(".notice");
  notice.hidden = true;
  notice.replaceChildren();
  if (!answer) {
    $(".summary").textContent = state.where.length ? count(source.total, "match", "matches") : count(source.total, "item", "items");
    if (!source.total) empty(notice);
    return;
  }
  const seconds = Object.values(answer.seconds).reduce((sum, each) => sum + each, 0);
  const how = answer.exact ? "" : answer.recall ? `, recall ${answer.recall.toFixed(3)}` : ", approximate";
  const unsure = state.relevance && answer.unjudged ? ", none left out: relevance is not known" : "";
  $(".summary").textContent = `${count(answer.total, "item", "items")} in ${duration(seconds)}${how}${unsure}`;
  if (!answer.results.length) nothing(notice);
  else if (answer.nothing_relevant) {
    notice.append(make("h2", {}, "Nothing relevant found"), make("p", {}, "The nearest are below, and they are no nearer than chance would bring them."));
    notice.hidden = false;
  }
}

function nothing(notice) {
  notice.append(make("h2", {}, "Nothing found"));
  if (state.relevance || state.where.length) {
    notice.append(
      make("p", {}, state.relevance ? "Nothing is as sure as you ask for." : "Nothing passes the filters."),
      make("button", { type: "button", class: "solid", on: { click: () => filters.reset() } }, "Search without filters"),
    );
  } else notice.append(make("p", {}, "There is nothing to find yet."));
  notice.hidden = false;
}

function empty(notice) {
  if (state.where.length) return nothing(notice);
  notice.append(
    make("h2", {}, "Nothing is indexed yet"),
    make("p", {}, "Run ", make("code", {}, "costream index ~/Pictures"), " and what it finds appears here."),
  );
  notice.hidden = false;
  return undefined;
}

function tell(words, hint = "") {
  const message = $(".message");
  message.hidden = !words;
  message.replaceChildren();
  if (!words) return;
  message.append(make("p", {}, words), hint ? make("p", { class: "hint" }, hint) : "", make("button", { type: "button", class: "ghost", on: { click: () => search() } }, "Try again"));
}

// --- one result ---

async function showDetail() {
  if (!state.open) {
    if (detail.isOpen) {
      const { active } = grid; // closing gives the focus back to where it was on opening
      detail.close();
      grid.focus(active);
    }
    return;
  }
  const id = state.open;
  const index = source.items.findIndex((each) => each?.id === id);
  if (index >= 0) {
    grid.active = index;
    source.ensure(index, index + 1);
    detail.show(source.at(index), { before: index > 0, after: index + 1 < source.total });
    return;
  }
  try {
    const found = await item(id);
    if (state.open === id) detail.show(found, { before: false, after: false });
  } catch (error) {
    change({ open: "" });
    failed(error);
  }
}

function step(by) {
  const result = source.at(grid.active + by);
  if (!result) return;
  grid.focus(grid.active + by, { take: false });
  state = { ...state, open: result.id };
  history.replaceState(null, "", toHash(state));
  showDetail();
}

// --- pictures from outside ---

$("#file").addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (file) searchBy(file);
});
addEventListener("paste", async (event) => {
  const picture = await pictureIn(event.clipboardData);
  if (picture) {
    event.preventDefault();
    searchBy(picture);
  }
});
let inside = 0;
const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!holdsFile(event)) return;
  inside += 1;
  $(".drop").hidden = false;
});
addEventListener("dragleave", () => {
  inside = Math.max(0, inside - 1);
  if (!inside) $(".drop").hidden = true;
});
addEventListener("dragover", (event) => {
  if (holdsFile(event)) event.preventDefault();
});
addEventListener("drop", async (event) => {
  inside = 0;
  $(".drop").hidden = true;
  if (!holdsFile(event)) return;
  event.preventDefault();
  const picture = await pictureIn(event.dataTransfer);
  if (picture) searchBy(picture);
});

// --- controls ---

function togglePanel(open = $("#filters").hidden) {
  $("#filters").hidden = !open;
  $(".views [data-do=filters]").setAttribute("aria-expanded", String(open));
}

const DO = {
  clear: () => {
    change({ ...EMPTY, where: state.where, sort: state.sort });
    box.input.focus();
  },
  pick: () => $("#file").click(),
  help: () => $("#help").showModal(),
  filters: () => togglePanel(),
  unfilter: () => filters.reset(),
  whole: () => showWhole(localStorage.getItem("whole") !== "yes"),
};
document.addEventListener("click", (event) => {
  const name = event.target.closest?.("[data-do]")?.dataset.do;
  if (name in DO) DO[name]();
  else if (!event.target.closest?.("#filters") && event.target.isConnected) togglePanel(false);
});
for (const control of document.querySelectorAll("[data-add]")) {
  control.addEventListener("click", () => box.write(Number(control.dataset.add)));
}
$(".box").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
  grid.focus(0, { scroll: false, take: false });
});
$(".brand").addEventListener("click", (event) => {
  event.preventDefault();
  change({ ...EMPTY });
  scrollTo(0, 0);
});
$("#sort").addEventListener("change", (event) => change({ sort: event.target.value }));
addEventListener("popstate", () => {
  const before = toHash({ ...state, open: "" });
  state = fromHash(location.hash);
  show({ research: toHash({ ...state, open: "" }) !== before, typing: false });
});

function showWhole(whole) {
  localStorage.setItem("whole", whole ? "yes" : "");
  $("#results").classList.toggle("whole", whole);
  $("[data-do=whole]").setAttribute("aria-pressed", String(whole));
}

function resize(value) {
  const [least, most] = innerWidth < 600 ? [58, 250] : [96, 420];
  grid.resize(least * (most / least) ** (value / 100));
}
$("#size").addEventListener("input", (event) => {
  localStorage.setItem("size", event.target.value);
  resize(Number(event.target.value));
});

// --- the key of a closed collection ---

function askKey() {
  if (!$("#key").open) $("#key").showModal();
}
$(".keyform").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await begin($("#secret").value);
    location.reload();
  } catch (error) {
    $(".wrong").textContent = error.message;
  }
});
$("#key").addEventListener("cancel", (event) => event.preventDefault());

// --- beginning ---

startTheme($("[data-do=theme]"));
showWhole(localStorage.getItem("whole") === "yes");
startKeys({
  grid,
  detail,
  box,
  step,
  more,
  add,
  current: () => (detail.isOpen ? detail.result : source?.at(grid.active)),
  close: () => change({ open: "" }),
  clear: () => DO.clear(),
  help: () => DO.help(),
  panel: () => !$("#filters").hidden,
  closePanel: () => togglePanel(false),
});
$("#size").value = localStorage.getItem("size") ?? "45";
resize(Number($("#size").value));
show({ research: true, typing: false });
about().then((found) => {
  info = found;
  filters.allowPaths(found.shows_paths);
  $(".about").textContent = `${count(found.items, "item", "items")}, seen by ${found.model}. costream ${found.version}`;
}).catch((error) => {
  if (!(error instanceof Refusal)) throw error;
});
if (matchMedia("(hover: hover)").matches && !state.open) box.input.focus();

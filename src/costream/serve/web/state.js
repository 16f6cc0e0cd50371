// The question as one plain value, and that value as a URL: what is shown can be kept, sent and
// gone back to. It is in the fragment, which browsers do not send to anybody.

const LISTS = { plus: ["text", 1], minus: ["text", -1], like: ["like", 1], unlike: ["like", -1],
  image: ["image", 1], unimage: ["image", -1] };

export const EMPTY = Object.freeze({
  q: "", // the words in the box
  terms: [], // further parts: {kind: "text" | "like" | "image", value, sign}
  where: [], // KEY=VALUE, as the service takes them
  sort: "relevance", // or date-descending, date-ascending, name-ascending, name-descending
  relevance: 0, // percent
  duplicates: false, // whether near-duplicates are shown once
  open: "", // id of the item that is looked at
});

export function isQuestion(state) {
  return Boolean(state.q.trim() || state.terms.length);
}

export function toHash(state) {
  const pairs = new URLSearchParams();
  if (state.q) pairs.append("q", state.q);
  for (const term of state.terms) {
    const name = Object.keys(LISTS).find((key) => LISTS[key][0] === term.kind && LISTS[key][1] === term.sign);
    pairs.append(name, term.value);
  }
  for (const condition of state.where) pairs.append("where", condition);
  if (state.sort !== EMPTY.sort) pairs.set("sort", state.sort);
  if (state.relevance) pairs.set("relevance", String(state.relevance));
  if (state.duplicates) pairs.set("duplicates", "once");
  if (state.open) pairs.set("open", state.open);
  const text = pairs.toString();
  return text ? `#${text}` : "#";
}

export function fromHash(hash) {
  const state = { ...EMPTY, terms: [], where: [] };
  for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (name === "q") state.q = value;
    else if (name in LISTS && value) state.terms.push({ kind: LISTS[name][0], sign: LISTS[name][1], value });
    else if (name === "where" && value) state.where.push(value);
    else if (name === "sort" && /^(relevance|(date|name)-(de|a)scending)$/.test(value)) state.sort = value;
    else if (name === "relevance") state.relevance = Math.min(Math.max(Number(value) || 0, 0), 100);
    else if (name === "duplicates") state.duplicates = value === "once";
    else if (name === "open" && /^[\w-]+$/.test(value)) state.open = value;
  }
  return state;
}

// What the service is asked; null when everything is to be shown.
export function toRequest(state) {
  if (!isQuestion(state)) return null;
  const terms = state.q.trim() ? [{ text: state.q.trim() }] : [];
  for (const term of state.terms) {
    const value = term.kind === "image" ? fromUrlBase64(term.value) : term.value;
    terms.push(term.sign === 1 ? { [term.kind]: value } : { [term.kind]: value, weight: -1 });
  }
  const request = { terms, where: state.where };
  if (state.relevance) request.min_relevance = state.relevance / 100;
  if (state.duplicates) request.collapse_duplicates = true;
  return request;
}

export function toUrlBase64(text) {
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export function fromUrlBase64(text) {
  const plain = text.replaceAll("-", "+").replaceAll("_", "/");
  return plain + "=".repeat((4 - (plain.length % 4)) % 4);
}

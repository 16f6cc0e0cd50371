// The service, as functions. Every failure is a Refusal with words for people.

export class Refusal extends Error {
  constructor(status, detail, hint) {
    super(detail);
    this.status = status;
    this.hint = hint;
  }
}

export async function ask(path, { body, signal, method } = {}) {
  const options = { signal, method: method ?? (body === undefined ? "GET" : "POST") };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The service does not answer.", "Is costream serve still running?");
  }
  if (response.status === 204) return null;
  let value;
  try {
    value = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(response.status, `The service answered ${response.status} without words.`, "");
  }
  if (!response.ok) {
    const words = [value.detail, ...(value.errors ?? [])].join("; ");
    throw new Refusal(response.status, words, value.hint ?? "");
  }
  return value;
}

export const about = () => ask("about");
export const item = (id) => ask(`items/${id}`);
export const begin = (key) => ask("session", { body: { key } });
export const explain = (id, terms) => ask("explain", { body: { id, terms } });
export const search = (request, signal) => ask("search", { body: request, signal });

export function list({ sort, order, where, offset, limit }, signal) {
  const pairs = new URLSearchParams({ sort, order, offset, limit });
  for (const condition of where) pairs.append("where", condition);
  return ask(`items?${pairs}`, { signal });
}

export function thumbnail(result, size) {
  if (!result.thumbnail) return "";
  return `${result.thumbnail}${result.thumbnail.includes("?") ? "&" : "?"}size=${size}`;
}

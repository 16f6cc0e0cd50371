// Results that are fetched page by page, when somebody looks at them.

import { list, search } from "./api.js";
import { toRequest } from "./state.js";

const PAGE = 100;
const MOST = 1000; // of one question; the service gives no more
const POOL = 300; // of which the order can be changed

export class Source {
  constructor(state, changed, failed) {
    this.state = state;
    this.total = 0;
    this.answer = null; // the first answer to a question
    this.items = [];
    this._pages = new Map();
    this._changed = changed;
    this._failed = failed;
    this._abort = new AbortController();
    this._request = toRequest(state);
    this._sorted = this._request !== null && state.sort !== "relevance";
  }

  get isQuestion() {
    return this._request !== null;
  }

  at(index) {
    return this.items[index];
  }

  // The first page; everything else follows when it is looked at.
  start() {
    return this._page(0);
  }

  stop() {
    this._abort.abort();
  }

  ensure(first, last) {
    if (this._sorted) return;
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (page * PAGE < this.total) this._page(page);
    }
  }

  _page(page) {
    if (!this._pages.has(page)) {
      const loading = this._load(page).catch((error) => {
        this._pages.delete(page);
        if (error.name !== "AbortError") this._failed(error);
      });
      this._pages.set(page, loading);
    }
    return this._pages.get(page);
  }

  async _load(page) {
    const offset = page * PAGE;
    const found = this._request ? await this._ask(offset) : await this._list(offset);
    found.forEach((item, number) => {
      this.items[offset + number] = item;
    });
    // A last page that is shorter than expected: something was removed meanwhile.
    if (found.length < PAGE) this.total = Math.min(this.total, offset + found.length);
    this._changed(this);
  }

  async _list(offset) {
    const [sort, order] = (this.state.sort === "relevance" ? "date-descending" : this.state.sort).split("-");
    const where = this.state.where;
    const answer = await list({ sort, order, where, offset, limit: PAGE }, this._abort.signal);
    this.total = answer.total;
    return answer.items;
  }

  async _ask(offset) {
    const top = this._sorted ? POOL : Math.min(PAGE, MOST - offset);
    const answer = await search({ ...this._request, top, offset }, this._abort.signal);
    this.answer ??= answer;
    const results = this._sorted ? sorted(answer.results, this.state.sort) : answer.results;
    const more = !this._sorted && results.length === top;
    this.total = Math.max(this.total, offset + results.length);
    // How many follow is not known before the end: room for another page is enough to scroll on.
    if (more) this.total = Math.max(this.total, Math.min(offset + 2 * PAGE, MOST, answer.total));
    return results;
  }
}

function sorted(results, sort) {
  const [key, order] = sort.split("-");
  const sign = order === "ascending" ? 1 : -1;
  const names = new Intl.Collator(undefined, { numeric: true });
  const compare = key === "date" ? (a, b) => (a.date ?? 0) - (b.date ?? 0) : (a, b) => names.compare(a.name, b.name);
  return [...results].sort((a, b) => sign * compare(a, b) || a.rank - b.rank);
}

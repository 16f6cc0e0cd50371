// Numbers and dates as people read them.

const NUMBER = new Intl.NumberFormat();
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });
const MINUTE = new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeStyle: "short" });

export const count = (number, one, many) => `${NUMBER.format(number)} ${number === 1 ? one : many}`;
export const percent = (share) => `${Math.round(share * 100)} %`;
export const day = (seconds) => DAY.format(new Date(seconds * 1000));
export const moment = (seconds) => MINUTE.format(new Date(seconds * 1000));

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (!parts[0]) parts.shift();
  return parts.map((part, number) => (number ? String(part).padStart(2, "0") : part)).join(":");
}

export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB"];
  let unit = 0;
  let size = number;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

export function duration(seconds) {
  const ms = seconds * 1000;
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${seconds.toFixed(1)} s`;
}

// How near a result is, for people: a probability where the service gives one.
export function nearness(result) {
  if (typeof result.relevance === "number") return percent(result.relevance);
  return typeof result.score === "number" ? result.score.toFixed(2) : "";
}

// The five views. Each is a function (place, argument) that builds itself and may give refresh(status) and end().

import { api, go, note } from "./app.js";

const SAMPLES = 60; // looks kept for a rate's curve
const PAGE = 100; // dead letters fetched at a time

// An element with attributes and children; text is always text.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });
const whole = new Intl.NumberFormat("en");

function age(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const clock = (unix) => (unix ? new Date(unix * 1000).toLocaleString() : "–");

function facts(entries) {
  return el("dl", { class: "facts" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}

function pill(kind, text) {
  return el("span", { class: `pill ${kind}` }, text);
}

function curve(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const top = Math.max(...values, 0.001);
  const points = values.map((value, i) => `${(i / (SAMPLES - 1)) * 100},${29 - (value / top) * 27}`);
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

// How fast named totals grow, and how it was.
class Rates {
  #before = new Map();
  #curves = new Map();

  next(key, total, at) {
    const before = this.#before.get(key);
    this.#before.set(key, { total, at });
    const rate = before && at > before.at ? Math.max(0, total - before.total) / (at - before.at) : 0;
    const values = this.#curves.get(key) || Array(SAMPLES).fill(0);
    if (before && at > before.at) values.push(rate);
    this.#curves.set(key, values.slice(-SAMPLES));
    return { rate, values: this.#curves.get(key) };
  }
}

const rates = new Rates();

export function flow(place) {
  const sources = el("div");
  const rules = el("div");
  const sinks = el("div");
  const filter = el("input", { type: "search", placeholder: "Filter rules", "aria-label": "Filter rules", oninput: () => listRules() });
  place.append(
    el("h1", {}, "Flow"),
    el("p", { class: "faint" }, "What comes in, which rules want it, and where it goes."),
    el("div", { class: "flow" },
      el("section", { "aria-label": "Sources" }, el("h2", {}, "Sources"), sources),
      el("section", { "aria-label": "Rules" }, el("h2", {}, "Rules"), el("div", { class: "card" }, filter, rules)),
      el("section", { "aria-label": "Sinks" }, el("h2", {}, "Sinks"), sinks)),
  );

  async function listRules() {
    const found = await api(`/api/rules?q=${encodeURIComponent(filter.value)}`).catch(() => null);
    if (!found) return;
    const shown = found.rules.map((rule) =>
      el("div", { class: "rule" },
        el("span", { class: "name" }, rule.name),
        el("span", { class: "hits", title: "events matched since the start" }, whole.format(rule.matches)),
        el("span", { class: "faint small" }, `to ${rule.send.join(", ") || "nothing"}`)));
    const more = found.total - found.rules.length;
    rules.replaceChildren(...shown, more > 0 ? el("p", { class: "faint small" }, `and ${whole.format(more)} more`) : "");
    if (!found.total) rules.replaceChildren(el("p", { class: "faint" }, filter.value ? "No rule has that in its name." : "No rules yet."));
  }

  return {
    async refresh(status) {
      const now = performance.now() / 1000;
      sources.replaceChildren(...Object.entries(status.sources).map(([name, source]) => sourceCard(name, source, now)));
      sinks.replaceChildren(...Object.entries(status.sinks).map(([name, sink]) => sinkCard(name, sink, now)));
      if (!Object.keys(status.sources).length) sources.replaceChildren(el("p", { class: "empty" }, "No sources."));
      await listRules();
    },
  };
}

function sourceCard(name, source, now) {
  const { rate, values } = rates.next(`source ${name}`, source.received, now);
  const [kind, text] = source.connected
    ? ["good", source.streams > 1 ? `${source.streams} streams` : "connected"]
    : source.finished ? ["", "finished"] : source.ready ? ["warn", "reconnecting"] : ["bad", "not connected"];
  return el("article", { class: "card" },
    el("div", { class: "row" }, el("h3", {}, name), pill(kind, text)),
    facts([["events/s", number.format(rate)], ["received", whole.format(source.received)], ["repeats", whole.format(source.duplicate)], ["unmatched", whole.format(source.unmatched)],
      ...(source.lag !== undefined && source.lag !== null ? [["lag", age(source.lag)]] : []),
      ...(source.gaps ? [["gaps", whole.format(source.gaps)]] : [])]),
    curve(values),
    source.error ? el("p", { class: "small" }, source.error) : null,
    ...(source.warnings || []).map((warning) => el("p", { class: "small faint" }, `server: ${warning}`)));
}

function sinkCard(name, sink, now) {
  const { rate, values } = rates.next(`sink ${name}`, sink.delivered, now);
  const [kind, text] = !sink.configured ? ["warn", "removed"] : sink.paused ? ["warn", "paused"] : sink.waiting && sink.oldest_age_seconds > 60 ? ["warn", "behind"] : ["good", "delivering"];
  return el("article", { class: "card" },
    el("div", { class: "row" }, el("h3", {}, name), pill(kind, text)),
    facts([["delivered/s", number.format(rate)], ["delivered", whole.format(sink.delivered)], ["waiting", whole.format(sink.waiting)], ["oldest", age(sink.oldest_age_seconds)], ["dead", whole.format(sink.dead)]]),
    curve(values),
    sink.paused ? el("p", { class: "small" }, `${sink.paused.reason}: ${sink.paused.error}; next try in ${age(Math.max(0, sink.paused.until - Date.now() / 1000))}`) : null);
}

export function alerts(place) {
  const list = el("div");
  place.append(el("h1", {}, "Alerts"), el("p", { class: "faint" }, "What is pending or firing now, and what is silenced."), list);
  return {
    async refresh() {
      const found = await api("/api/alerts").catch((error) => ({ alerts: [], error: error.message }));
      if (found.error) return list.replaceChildren(el("p", { class: "empty" }, found.error));
      if (!found.alerts.length) return list.replaceChildren(el("p", { class: "empty" }, "Nothing is firing."));
      const summaries = found.alerts.some((each) => each.summary);
      const head = ["State", "Alert", "About", "Since", ...(summaries ? ["Summary"] : [])];
      list.replaceChildren(el("div", { class: "scroll" }, el("table", {},
        el("caption", {}, found.alerts.length === 1 ? "1 alert" : `${found.alerts.length} alerts`),
        el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, found.alerts.map((each) => el("tr", {},
          el("td", {}, pill(each.state === "firing" ? "bad" : "warn", each.suppressed || each.state)),
          el("td", {}, each.alert, each.labels?.severity ? el("div", { class: "faint small" }, each.labels.severity) : null),
          el("td", { class: "mono" }, each.key),
          el("td", {}, each.since ? new Date(each.since).toLocaleString() : "–"),
          summaries ? el("td", {}, each.summary || "") : null))))));
    },
  };
}

export function deadLetters(place, wanted) {
  const sink = el("input", { id: "f-sink" });
  const rule = el("input", { id: "f-rule" });
  const reason = el("input", { id: "f-reason" });
  const body = el("tbody");
  const caption = el("caption", {}, "");
  const more = el("button", { class: "quiet", onclick: () => load(true), hidden: true }, "Load more");
  let last = null;
  const shown = new Set();

  const form = el("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); load(false); } },
    el("div", {}, el("label", { for: "f-sink" }, "Sink"), sink),
    el("div", {}, el("label", { for: "f-rule" }, "Rule"), rule),
    el("div", {}, el("label", { for: "f-reason" }, "Reason"), reason),
    el("button", { type: "submit" }, "Filter"),
    el("button", { type: "button", class: "quiet", onclick: retryAll }, "Retry all that match"));
  place.append(el("h1", {}, "Dead letters"), el("p", { class: "faint" }, "Deliveries that were given up. A retry keeps the delivery id."), form,
    el("div", { class: "scroll" }, el("table", {}, caption,
      el("thead", {}, el("tr", {}, ["Last attempt", "Sink", "Rule", "Event", "Reason", ""].map((name) => el("th", { scope: "col" }, name)))), body)),
    el("p", {}, more));

  function filter() {
    const query = new URLSearchParams();
    for (const [name, input] of Object.entries({ sink, rule, reason })) if (input.value) query.set(name, input.value);
    return query;
  }

  async function load(next) {
    const query = filter();
    query.set("limit", PAGE);
    if (next && last) query.set("after", last);
    try {
      const found = (await api(`/api/dead-letters?${query}`)).dead_letters;
      if (!next) { body.replaceChildren(); shown.clear(); }
      for (const letter of found) if (!shown.has(letter.id)) { shown.add(letter.id); body.append(...rows(letter)); }
      last = found.at(-1)?.id ?? last;
      more.hidden = found.length < PAGE;
      caption.textContent = shown.size ? `${whole.format(shown.size)} shown` : "Nothing was given up.";
    } catch (error) { note(error.message); }
  }

  function rows(letter) {
    const row = el("tr", {},
      el("td", {}, clock(letter.last)), el("td", {}, letter.sink), el("td", {}, letter.rule),
      el("td", {}, letter.name, el("div", {}, el("a", { class: "mono small", href: `#/trace/${encodeURIComponent(letter.unique_id)}` }, letter.unique_id))),
      el("td", {}, pill("bad", letter.reason), el("div", { class: "small faint" }, `${letter.error}${letter.response ? `: ${letter.response.slice(0, 200)}` : ""}`)),
      el("td", {}, el("button", { onclick: () => retry(letter, row), "aria-label": `Retry ${letter.id}` }, "Retry")));
    return [row];
  }

  async function retry(letter, row) {
    try {
      await api(`/api/dead-letters/${encodeURIComponent(letter.id)}/retry`, { method: "POST" });
      row.remove();
      shown.delete(letter.id);
      note(`${letter.id} will be tried again`);
    } catch (error) { note(error.message); }
  }

  async function retryAll() {
    try {
      const found = await api("/api/dead-letters/retry", { method: "POST", body: JSON.stringify(Object.fromEntries(filter())) });
      note(`${found.changed} will be tried again`);
      load(false);
    } catch (error) { note(error.message); }
  }

  if (wanted) sink.value = wanted;
  load(false);
  return {};
}

export function trace(place, wanted) {
  const input = el("input", { id: "unique-id", class: "mono", size: 34, value: wanted || "" });
  const result = el("div");
  const form = el("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); if (input.value.trim()) go(`trace/${encodeURIComponent(input.value.trim())}`); } },
    el("div", {}, el("label", { for: "unique-id" }, "unique_id of an event"), input), el("button", { type: "submit" }, "Trace"));
  const recent = el("ul", { class: "list" });
  place.append(el("h1", {}, "Trace"), el("p", { class: "faint" }, "The story of one event: when it came, which rules wanted it, each attempt."), form, result,
    el("h2", {}, "Recent events"), recent);

  async function load() {
    try {
      const found = await api(`/api/trace/${encodeURIComponent(wanted)}`);
      result.replaceChildren(el("section", { class: "card" },
        el("h3", {}, found.name || found.unique_id),
        el("p", { class: "faint small" }, `received ${clock(found.received)} from ${found.source}`),
        found.deliveries.length ? found.deliveries.map(delivery) : el("p", {}, "No deliveries are kept of it.")));
    } catch (error) { result.replaceChildren(el("p", { class: "card" }, error.message)); }
  }

  if (wanted) load();
  api("/api/recent").then(({ events }) => recent.replaceChildren(...events.reverse().map((event) =>
    el("li", {}, el("button", { onclick: () => go(`trace/${encodeURIComponent(event.unique_id)}`) }, `${event.summary || event.name}`, el("span", { class: "faint small" }, `  ${event.name}`)))))).catch(() => {});
  return {};
}

function delivery(each) {
  const kind = { delivered: "good", dead: "bad", dropped: "bad", waiting: "warn" }[each.state] || "";
  return el("div", {},
    el("p", {}, `${each.rule} → ${each.sink} `, pill(kind, each.state), el("span", { class: "mono small faint" }, `  ${each.id}`)),
    el("ol", { class: "steps" }, each.attempts.map((attempt) =>
      el("li", { class: attempt.reason ? "failed" : null }, `attempt ${attempt.number}: ${attempt.outcome}`,
        el("div", { class: "faint small" }, `${clock(attempt.at)}, ${attempt.duration.toFixed(3)} s${attempt.status ? `, status ${attempt.status}` : ""}${attempt.error ? `, ${attempt.error}` : ""}`)))),
    each.due ? el("p", { class: "faint small" }, `next attempt ${clock(each.due)}`) : null);
}

export function playground(place) {
  const text = el("textarea", { id: "event", spellcheck: "false", placeholder: '{"name": "as.up.data.forward", "identifiers": [...], "data": {...}}' });
  const result = el("div", { "aria-live": "polite" });
  const recent = el("ul", { class: "list" });
  const run = () => api("/api/explain", { method: "POST", body: text.value }).then(({ events }) => {
    result.replaceChildren(...events.map(explained));
    if (!events.length) result.replaceChildren(el("p", { class: "empty" }, "There is no event in that."));
  }).catch((error) => result.replaceChildren(el("p", { class: "card" }, error.message)));
  place.append(el("h1", {}, "Playground"), el("p", { class: "faint" }, "Paste an event, or take a recent one: why each rule wants it or not, and what would be sent. Nothing is sent."),
    el("div", { class: "grid" },
      el("div", {}, el("label", { for: "event" }, "Event (JSON)"), text,
        el("p", {}, el("button", { onclick: run }, "Explain")), el("h2", {}, "Recent events"), recent),
      result));
  api("/api/recent").then(({ events }) => recent.replaceChildren(...events.reverse().map((event) =>
    el("li", {}, el("button", { onclick: () => { text.value = JSON.stringify(event.event, null, 2); run(); } }, event.summary || event.name, el("span", { class: "faint small" }, `  ${event.name}`)))))).catch(() => {});
  return {};
}

const LISTED = 200; // verdicts shown: with 10,000 rules nobody reads on

function explained(event) {
  const wanted = event.rules.filter((rule) => rule.matched);
  const others = event.rules.filter((rule) => !rule.matched);
  return el("section", { class: "card" },
    el("h3", {}, event.name),
    el("p", { class: "faint small" }, `${wanted.length} of ${event.rules.length} rules want it`),
    [...wanted, ...others].slice(0, LISTED).map((rule) => el("div", { class: "verdict" },
      el("span", { class: rule.matched ? "yes" : "no", "aria-hidden": "true" }, rule.matched ? "✓" : "–"),
      el("div", {}, el("strong", {}, rule.rule), rule.matched ? ` sends to ${rule.send.join(", ")}` : el("div", { class: "faint small" }, rule.why)))),
    event.rules.length > LISTED ? el("p", { class: "faint" }, `and ${event.rules.length - LISTED} more that do not`) : null,
    event.deliveries.map((each) => el("div", {},
      el("p", {}, el("strong", {}, each.sink), each.to ? el("span", { class: "mono small" }, ` ${each.to}`) : ""),
      each.error ? el("p", { class: "pill bad" }, each.error) : el("pre", { tabindex: "0" }, pretty(each.body)))));
}

function pretty(body) {
  try { return JSON.stringify(JSON.parse(body), null, 2); } catch { return body; }
}

// The frame of the page: asking the API, the token, the views and their turn.
// Everything that comes from events is put in as text, never as markup.

import { alerts, deadLetters, flow, playground, trace } from "./views.js";

const EVERY = 2000; // ms between two looks at what changes
const VIEWS = { flow, alerts, "dead-letters": deadLetters, trace, playground };

let token = null; // in memory only: gone with the tab
let asking = null;
let current = null;

const $ = (id) => document.getElementById(id);

export async function api(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) {
    await askToken();
    return api(path, options);
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 403) throw new Error("changes need admin.token: set it in bridge.yaml and reload");
  if (!answer.ok) throw new Error(body.error || (body.mistakes || []).join("\n") || `HTTP ${answer.status}`);
  return body;
}

function askToken() {
  asking ??= new Promise((resolve, reject) => {
    $("ask").showModal();
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      token = $("token").value;
      $("token").value = "";
      $("ask").close("given");
      resolve();
    };
    $("ask-cancel").onclick = () => $("ask").close("cancelled");
    $("ask").onclose = () => $("ask").returnValue !== "given" && reject(new Error("no token"));
  }).finally(() => (asking = null));
  return asking;
}

export function note(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("note").append(line);
  setTimeout(() => line.remove(), 6000);
}

export function go(path) {
  location.hash = `#/${path}`;
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; } // a lone % somebody typed
}

function show() {
  const [, name = "flow", argument = ""] = location.hash.match(/^#\/([^/]*)\/?(.*)$/) || [];
  const view = Object.hasOwn(VIEWS, name) ? name : "flow";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  current?.end?.();
  $("main").replaceChildren();
  current = VIEWS[view]($("main"), decoded(argument));
  refresh();
}

async function refresh() {
  if (document.hidden) return;
  const shown = current;
  try {
    const status = await api("/api/status");
    health(status);
    await shown?.refresh?.(status);
  } catch (error) {
    $("health").className = "pill bad";
    $("health").textContent = error.message === "no token" ? "token needed" : "not reachable";
  }
}

function health(status) {
  const paused = Object.values(status.sinks).filter((sink) => sink.paused).length;
  const dead = Object.values(status.sinks).reduce((sum, sink) => sum + sink.dead, 0);
  $("version").textContent = status.version;
  count("dead-count", dead);
  count("alert-count", status.alerts?.firing ?? 0);
  const [kind, text] = !status.ready
    ? ["bad", status.not_ready[0] || "not ready"]
    : paused
      ? ["warn", paused === 1 ? "1 sink paused" : `${paused} sinks paused`]
      : ["good", "running"];
  $("health").className = `pill ${kind}`;
  if ($("health").textContent !== text) $("health").textContent = text;
}

function count(id, value) {
  $(id).hidden = !value;
  $(id).textContent = value > 9999 ? "9999+" : value;
}

async function turn() {
  await refresh();
  setTimeout(turn, EVERY);
}

addEventListener("hashchange", () => {
  show();
  $("main").focus();
});
document.addEventListener("visibilitychange", refresh);
show();
setTimeout(turn, EVERY);

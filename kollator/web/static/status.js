/** The operators' page: `/health` and `/workers`, asked again every two seconds while the page is seen. */

import { formatDuration, formatMs, visibleName } from "./format.js";

const PERIOD_MS = 2000;
const LIMIT_MS = 5000;
const ROWS = 1000; // More workers than that are counted, not listed.

/** @param {string} id @returns {HTMLElement} */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

let heardMs = 0;

/** @param {string} path @returns {Promise<any>} the answer, also one of a front that drains (503) */
async function ask(path) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), LIMIT_MS);
  try {
    const response = await fetch(path, { cache: "no-store", signal: limit.signal });
    return await response.json();
  } finally {
    clearTimeout(timer);
  }
}

async function refresh() {
  try {
    const [health, workers] = await Promise.all([ask("/health"), ask("/workers")]);
    heardMs = performance.now();
    showHealth(health);
    showWorkers(workers);
  } catch {
    element("status").dataset.state = "unreachable";
    show("status-line", "The front does not answer");
  }
  const ageS = Math.round((performance.now() - heardMs) / 1000);
  show("status-age", heardMs === 0 ? "" : ageS < 1 ? "Live" : `The figures are ${formatDuration(ageS)} old`);
}

/** @param {any} health */
function showHealth(health) {
  element("status").dataset.state = health.status;
  show("status-line", `${health.node} is ${health.status}`);
  show("role", health.role);
  show("leader", health.leader ?? "none");
  show("term", health.term);
  show("workers-up", `${health.workers?.up} of ${health.workers?.total}`);
  show("clients", health.connections?.client);
  show("worker-connections", health.connections?.worker);
  show("uptime", formatDuration(health.uptime_s));
  show("version", health.version);
  show("ring-digest", health.ring?.digest);
  const fronts = Array.isArray(health.cluster) ? health.cluster : [];
  element("fronts").replaceChildren(
    ...fronts.map((/** @type {any} */ front) =>
      row(front.node, front.state, [
        [front.state, "state"],
        [formatMs(front.sync_lag_ms ?? null), "number"],
      ]),
    ),
  );
}

/** @param {any} answer */
function showWorkers(answer) {
  show("ring-points", answer.ring?.points);
  const workers = Array.isArray(answer.workers) ? answer.workers : [];
  const rows = workers.slice(0, ROWS).map((/** @type {any} */ worker) =>
    row(worker.id, worker.state, [
      [worker.why ? `${worker.state}: ${worker.why}` : worker.state, "state"],
      [worker.region || "–", ""],
      [worker.sessions, "number"],
      [worker.capacity, "number"],
      [worker.fronts?.join(", ") || "–", ""],
      [worker.address || "–", ""],
    ]),
  );
  if (workers.length > ROWS) rows.push(row(`and ${workers.length - ROWS} more`, "", []));
  if (workers.length === 0) rows.push(row("none yet", "", []));
  element("workers").replaceChildren(...rows);
}

/**
 * @param {string} name
 * @param {string} state
 * @param {[unknown, string][]} cells text and class
 */
function row(name, state, cells) {
  const tr = document.createElement("tr");
  tr.dataset.name = name;
  tr.dataset.state = state;
  for (const [text, className] of [[name, ""], ...cells]) {
    const td = document.createElement("td");
    td.className = String(className);
    td.textContent = visibleName(String(text));
    tr.append(td);
  }
  return tr;
}

/** @param {string} id @param {unknown} value */
function show(id, value) {
  const text = visibleName(String(value ?? "–"));
  if (element(id).textContent !== text) element(id).textContent = text;
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, PERIOD_MS);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
run();

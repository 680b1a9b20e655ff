/** The page: shows what the client does, and lets the worker's files be downloaded. */

import { FileList } from "./filelist.js";
import { formatMs } from "./format.js";
import { KollatorClient } from "./kollator.js";

/** @param {string} id @returns {HTMLElement} */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const TICK_MS = 250;
const PATIENCE_MS = 1000; // A retry that fails sooner changes nothing on the page, and is not read out.
const MARK = { pending: "pending", active: "under way", done: "done", failed: "failed" };
const ARRIVED = "Files now come straight from this worker; the front is out of the way.";
/** What is said of each reason to wait or to give up: a headline, and what can be done. */
const SAID = new Map([
  [
    "no-workers",
    ["No worker is connected", "This front has nobody to hand you over to. It is asked again by itself."],
  ],
  [
    "no-answer",
    [
      "No worker could be reached",
      "The front named one, but no network path to it was found. A firewall may be in the way: " +
        "the front's operator can add a TURN server.",
    ],
  ],
  ["unreachable", ["The front cannot be reached", "Is it running, and is this device online?"]],
  ["rate-limited", ["The front asks for a pause", "Too many requests came from this address."]],
  ["connection-lost", ["The connection was lost", "A new one is made by itself."]],
  ["signaling-down", ["The front went away", "It is being called again."]],
  [
    "unsupported",
    [
      "This browser has no WebRTC",
      "Files come over a WebRTC data channel. Use a current Firefox, Chrome, Edge or Safari; in some, a " +
        "setting or an extension has switched it off.",
    ],
  ],
  ["replaced", ["Continued elsewhere", "This client has connected again, in another tab perhaps."]],
  ["not-allowed", ["Not allowed from here", "The front does not serve this page's origin or this address."]],
]);

const region = new URLSearchParams(location.search).get("region") ?? undefined;
const client = new KollatorClient({ region });
const files = new FileList(client, element);
let retryAtMs = 0;
/** @type {ReturnType<typeof setTimeout>|undefined} */
let showing;
let worker = "";

client.addEventListener("phase", ({ detail: { name, state, ms, message } }) => {
  const phase = element(`phase-${name}`);
  phase.dataset.state = state;
  phase.title = message;
  part(phase, ".phase-state").textContent = MARK[state];
  part(phase, ".phase-ms").textContent =
    state === "active" ? "…" : state === "failed" ? `failed, ${formatMs(ms)}` : formatMs(ms);
});

client.addEventListener("open", ({ detail }) => {
  worker = detail.worker.id;
  element("worker-id").textContent = worker;
  element("worker-region").textContent = detail.worker.region || "–";
  element("front-node").textContent = detail.node;
  element("handoff-ms").textContent = formatMs(detail.ms);
  files.refresh();
});

client.addEventListener("close", () => {
  const shown = ["worker-id", "worker-region", "front-node", "handoff-ms"];
  for (const id of shown) element(id).textContent = "–";
});

client.addEventListener("state", ({ detail: { state, code, message, retryInMs } }) => {
  const app = element("app");
  app.dataset.state = state;
  app.dataset.code = code ?? "";
  retryAtMs = retryInMs === null ? 0 : performance.now() + retryInMs;
  tick();
  files.online = state === "open";
  clearTimeout(showing);
  showing = setTimeout(show, state === "connecting" ? PATIENCE_MS : 0, state, code, message);
});

/** @param {import("./kollator.js").ClientState} state @param {string|null} code @param {string} message */
function show(state, code, message) {
  element("worker-help").hidden = code !== "no-workers";
  element("retry").hidden = !(state === "waiting" || state === "failed") || code === "unsupported";
  if (state === "connecting") say("Connecting", "A worker is being found and called.");
  else if (state === "closed") say("Closed", "The connection to the worker was ended.");
  else if (state === "open") say(`Connected to ${worker}`, ARRIVED);
  else say(...(SAID.get(code) ?? ["Not connected", message]));
}

element("retry-now").addEventListener("click", () => {
  if (client.state === "failed" || client.state === "closed") client.connect();
  else client.retryNow();
});
element("worker-command").textContent = [
  "twistd -n kollator-worker",
  `--front ${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/signaling`,
  "--key-file worker.key",
  "--folder ./share",
].join(" \\\n  ");

setInterval(tick, TICK_MS);
addEventListener("online", () => client.retryNow());
addEventListener("pagehide", () => client.close());
addEventListener("pageshow", ({ persisted }) => persisted && client.connect());
client.connect();

/** The seconds to the next attempt; not in the live region, which would read each of them out. */
function tick() {
  const seconds = Math.max(0, Math.ceil((retryAtMs - performance.now()) / 1000));
  const text = seconds > 0 ? `Next attempt in ${seconds} s` : "Trying again";
  element("countdown").textContent = client.state === "failed" ? "" : text;
}

/** @param {string} headline @param {string} text */
function say(headline, text) {
  if (element("headline").textContent !== headline) element("headline").textContent = headline;
  if (element("status-text").textContent !== text) element("status-text").textContent = text;
  document.title = `${headline} – Kollator`;
}

/** @param {HTMLElement} parent @param {string} selector @returns {HTMLElement} */
function part(parent, selector) {
  return /** @type {HTMLElement} */ (parent.querySelector(selector));
}

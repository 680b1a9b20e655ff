/** `POST /bootstrap`: who am I, which worker is mine, where is the signaling, which ICE servers. */

import { retryAfterMs } from "./backoff.js";
import { KollatorError } from "./errors.js";

const ANSWER_MS = 10_000;
const HOPELESS = new Set([400, 403, 404, 405, 413]); // The same request would get the same answer again.

/**
 * @typedef {import("./signaling.js").WorkerRef} WorkerRef
 * @typedef {object} Bootstrap
 * @property {string} client this client's id
 * @property {string} ticket
 * @property {WorkerRef} worker
 * @property {WorkerRef[]} alternates
 * @property {string} signaling a ws: or wss: URL
 * @property {RTCIceServer[]} iceServers
 * @property {string} node the front that answered
 */

/**
 * @param {URL} base the front
 * @param {{region?: string, exclude?: string[]}} wish
 * @param {AbortSignal} signal
 * @returns {Promise<Bootstrap>}
 * @throws {KollatorError} the front's code (`no-workers`, `rate-limited`, …), `unreachable`, `bad-answer`;
 *   `retryInMs` is what the front asked for
 */
export async function bootstrap(base, wish, signal) {
  const response = await post(new URL("/bootstrap", base), wish, signal);
  const answer = await response.json().catch(() => null);
  signal.throwIfAborted();
  if (!response.ok) throw refusal(response, answer);
  const signaling = signalingUrl(answer?.signaling, base);
  if (!isWorker(answer?.worker) || signaling === null) {
    throw new KollatorError("bad-answer", "The front's answer to /bootstrap is not understood.");
  }
  return {
    client: String(answer.client),
    ticket: typeof answer.ticket === "string" ? answer.ticket : "",
    worker: answer.worker,
    alternates: workers(answer.alternates),
    signaling,
    iceServers: Array.isArray(answer.iceServers) ? answer.iceServers : [],
    node: String(answer.node ?? ""),
  };
}

/**
 * @param {unknown} list
 * @returns {WorkerRef[]} those of it that are workers
 */
export function workers(list) {
  return Array.isArray(list) ? list.filter(isWorker) : [];
}

/** @param {any} worker */
export function isWorker(worker) {
  return typeof worker?.id === "string" && worker.id !== "";
}

/** @param {URL} url @param {{region?: string, exclude?: string[]}} wish @param {AbortSignal} signal */
async function post(url, { region, exclude }, signal) {
  const body = { ...(region && { region }), ...(exclude?.length && { exclude }) };
  const said = Object.keys(body).length > 0;
  const limit = new AbortController();
  const aborted = () => limit.abort(signal.reason);
  const timer = setTimeout(() => limit.abort(), ANSWER_MS);
  signal.addEventListener("abort", aborted);
  try {
    return await fetch(url, {
      method: "POST",
      cache: "no-store",
      signal: limit.signal,
      // No body, no Content-Type: then a page of another origin needs no preflight.
      ...(said && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    });
  } catch {
    signal.throwIfAborted();
    throw new KollatorError("unreachable", "The front cannot be reached.");
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", aborted);
  }
}

/** @param {Response} response @param {any} answer */
function refusal(response, answer) {
  const { code, message } = answer?.error ?? {};
  const status = `http-${response.status}`;
  return new KollatorError(String(code ?? status), String(message ?? status), {
    fatal: HOPELESS.has(response.status),
    retryInMs: retryAfterMs(response.headers.get("Retry-After"), Date.now()),
  });
}

/**
 * @param {unknown} text
 * @param {URL} base
 * @returns {string|null}
 */
function signalingUrl(text, base) {
  try {
    const url = new URL(String(text));
    // A page that came over HTTPS may not open ws:, which a front behind an untrusted TLS proxy says.
    if (url.protocol === "ws:" && base.protocol === "https:") url.protocol = "wss:";
    return url.protocol === "ws:" || url.protocol === "wss:" ? url.href : null;
  } catch {
    return null;
  }
}

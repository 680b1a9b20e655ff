/**
 * The connection to a front's `WS /signaling` (subprotocol `kollator.v1`), kept up: hello with the ticket,
 * reconnection with backoff and jitter, messages kept while it is away.
 */

import { Backoff, Pause } from "./backoff.js";
import { KollatorError } from "./errors.js";

export const SUBPROTOCOL = "kollator.v1";

const WELCOME_MS = 10_000;
const ANSWER_MS = 10_000;
const OUTBOX = 64; // Messages kept while the connection is away: one attempt's offer and candidates, amply.
const STEADY_MS = 10_000; // A connection that lasted so long was a good one: the next wait is short again.
const MAX_DRAIN_MS = 60_000;
const UNHURRIED = new Map([
  [1013, 5000],
  [4400, 5000],
  [4413, 1000],
  [4429, 5000],
]); // Close codes by which the front asks for time, and how much (ms) it gets at least.
const FINAL = new Map([
  [4401, ["unauthenticated", "The front does not accept this client."]],
  [4403, ["not-allowed", "The front does not allow this page's origin or address."]],
  [4409, ["replaced", "This client has connected again elsewhere, in another tab perhaps."]],
]);

/**
 * @typedef {{id: string, region: string}} WorkerRef
 * @typedef {{id: string, node: string, iceServers: RTCIceServer[], sameId: boolean}} Welcome
 * @typedef {object} SignalingEvents
 * @property {() => void} onconnecting a WebSocket is being opened
 * @property {(welcome: Welcome) => void} onwelcome the front has answered hello
 * @property {(message: any) => void} onmessage anything that is not an answer to hello or to a `request`
 * @property {(down: {code: number, reason: string, retryInMs: number, failures: number}) => void} ondown
 * @property {(problem: KollatorError) => void} onstop it will not connect again
 */

export class Signaling {
  #url;
  #ticket;
  #events;
  #backoff;
  #pause = new Pause();
  /** @type {WebSocket|null} */
  #socket = null;
  #up = false;
  #stopped = false;
  #id = "";
  #refs = 0;
  #drainMs = -1;
  #refusals = 0;
  /** @type {any[]} */
  #outbox = [];
  /** @type {Map<string, (message: any) => void>} */
  #answers = new Map();
  /** @type {((problem: KollatorError|null) => void)[]} */
  #waiting = [];
  /** @type {KollatorError|null} */
  #problem = null;

  /**
   * @param {{url: string, ticket?: string, random?: () => number} & SignalingEvents} options `url`: ws: or
   *   wss:, `random`: for the jitter
   */
  constructor({ url, ticket = "", random, ...events }) {
    this.#url = url;
    this.#ticket = ticket;
    this.#events = events;
    this.#backoff = new Backoff({ random });
    this.#keepUp();
  }

  /** Whether the front has said welcome on the present connection. */
  get up() {
    return this.#up;
  }

  /**
   * Sends now, or once the connection is back.
   * @param {{type: string, session?: string, ref?: string}} message
   */
  send(message) {
    if (this.#up) this.#socket?.send(JSON.stringify(message));
    else if (!this.#stopped && this.#outbox.push(message) > OUTBOX) this.#outbox.shift();
  }

  /** Forgets what a dead session still had to say. @param {string} session */
  drop(session) {
    this.#outbox = this.#outbox.filter((message) => message.session !== session);
  }

  /**
   * Sends a message and waits for the answer that carries its `ref`.
   * @param {{type: string}} message
   * @param {AbortSignal} signal
   * @returns {Promise<any>} the answer
   * @throws {KollatorError} with the front's error code, or `silent`
   */
  async request(message, signal) {
    const ref = `q${(this.#refs += 1)}`;
    const timeOut = new Pause();
    try {
      return await new Promise((resolve, reject) => {
        this.#answers.set(ref, (answer) => {
          if (answer.type === "error") reject(new KollatorError(answer.code, answer.message));
          else resolve(answer);
        });
        const silent = new KollatorError("silent", "The front does not answer.");
        timeOut.wait(ANSWER_MS, signal).then(() => reject(silent), reject);
        this.send({ ...message, ref });
      });
    } finally {
      this.#answers.delete(ref);
      timeOut.end();
    }
  }

  /**
   * @param {AbortSignal} signal
   * @returns {Promise<void>} once the front has said welcome
   * @throws {KollatorError} `signaling-unreachable` after three failures in a row; what `onstop` got
   */
  ready(signal) {
    return new Promise((resolve, reject) => {
      if (this.#up) return resolve();
      if (this.#problem) return reject(this.#problem);
      const aborted = () => reject(signal.reason);
      if (signal.aborted) return aborted();
      signal.addEventListener("abort", aborted);
      this.#waiting.push((problem) => {
        signal.removeEventListener("abort", aborted);
        problem ? reject(problem) : resolve();
      });
    });
  }

  /** Does not wait any longer for the next attempt. */
  retryNow() {
    this.#pause.end();
  }

  /** Closes for good, without `onstop`. */
  close() {
    this.#stopped = true;
    this.#up = false;
    this.#socket?.close(1000, "done");
    this.#pause.end();
  }

  async #keepUp() {
    while (!this.#stopped) {
      this.#events.onconnecting();
      const { code, reason, upMs } = await this.#connection();
      this.#up = false;
      if (this.#stopped) return;
      if (upMs >= STEADY_MS) this.#backoff.reset();
      if (this.#isFinal(code)) {
        const [name, message] = /** @type {string[]} */ (FINAL.get(code));
        return this.#stop(new KollatorError(name, message, { fatal: true }));
      }
      const drained = this.#drainMs >= 0;
      const retryInMs = drained ? this.#drainMs : this.#backoff.next(UNHURRIED.get(code));
      this.#drainMs = -1;
      this.#events.ondown({ code, reason, retryInMs, failures: this.#backoff.failures });
      if (this.#backoff.failures >= 3) {
        this.#settle(new KollatorError("signaling-unreachable", "The front's signaling cannot be reached."));
      }
      await this.#pause.wait(retryInMs);
    }
  }

  /**
   * One WebSocket, from opening to close.
   * @returns {Promise<{code: number, reason: string, upMs: number}>}
   */
  #connection() {
    return new Promise((resolve) => {
      /** @type {WebSocket} */
      let socket;
      try {
        socket = new WebSocket(this.#url, SUBPROTOCOL);
      } catch (problem) {
        return resolve({ code: 1006, reason: String(problem), upMs: 0 }); // No URL for it, or blocked.
      }
      this.#socket = socket;
      let welcomedMs = 0;
      let over = false;
      const end = (/** @type {number} */ code, /** @type {string} */ reason) => {
        if (over) return;
        over = true;
        clearTimeout(timer);
        resolve({ code, reason, upMs: welcomedMs && performance.now() - welcomedMs });
      };
      const timer = setTimeout(() => {
        if (welcomedMs) return;
        socket.close(1000, "no welcome");
        end(1006, "no welcome in time"); // A dead link does not close either: go on without its word.
      }, WELCOME_MS);
      socket.onopen = () => this.#hello(socket);
      socket.onclose = ({ code, reason }) => end(code, reason);
      socket.onmessage = ({ data }) => {
        if (over || this.#stopped) return;
        const message = parse(data);
        if (message === null) return;
        if (message.type === "welcome" && !welcomedMs) welcomedMs = performance.now();
        this.#receive(socket, message);
        if (this.#drainMs >= 0) end(1001, "draining");
      };
    });
  }

  /** @param {WebSocket} socket */
  #hello(socket) {
    const ticket = this.#ticket ? { ticket: this.#ticket } : {};
    socket.send(JSON.stringify({ type: "hello", role: "client", ref: "hello", ...ticket }));
  }

  /** @param {WebSocket} socket @param {any} message */
  #receive(socket, message) {
    const answer = typeof message.ref === "string" ? this.#answers.get(message.ref) : undefined;
    if (answer) answer(message);
    else if (message.type === "welcome") this.#welcomed(socket, message);
    else if (message.type === "error" && message.code === "bad-ticket" && !this.#up) {
      if (!this.#ticket) return;
      this.#ticket = "";
      this.#hello(socket);
    } else if (message.type === "draining") {
      this.#drainMs = Math.min(Math.max(Number(message.reconnectInMs) || 0, 0), MAX_DRAIN_MS);
      socket.close(1000, "draining");
    } else this.#events.onmessage(message);
  }

  /** @param {WebSocket} socket @param {any} message */
  #welcomed(socket, message) {
    const sameId = this.#id === "" || this.#id === message.id;
    this.#id = String(message.id);
    this.#ticket = typeof message.ticket === "string" ? message.ticket : "";
    this.#up = true;
    this.#refusals = 0;
    const outbox = sameId ? this.#outbox : []; // What was said under another id would start no session here.
    this.#outbox = [];
    for (const waiting of outbox) socket.send(JSON.stringify(waiting));
    const iceServers = Array.isArray(message.iceServers) ? message.iceServers : [];
    this.#events.onwelcome({ id: this.#id, node: String(message.node), iceServers, sameId });
    this.#settle(null);
  }

  /** Without its ticket a client that was turned away may still be welcome: that is tried once. */
  #isFinal(code) {
    if (code !== 4401) return FINAL.has(code);
    this.#refusals += 1;
    this.#ticket = "";
    return this.#refusals > 1;
  }

  /** @param {KollatorError} problem */
  #stop(problem) {
    this.#stopped = true;
    this.#problem = problem;
    this.#events.onstop(problem);
    this.#settle(problem);
  }

  /** @param {KollatorError|null} problem */
  #settle(problem) {
    for (const tell of this.#waiting.splice(0)) tell(problem);
  }
}

/**
 * @param {unknown} data
 * @returns {any} an object with a `type`, or null
 */
function parse(data) {
  try {
    const message = JSON.parse(String(data));
    return typeof message?.type === "string" ? message : null;
  } catch {
    return null;
  }
}

/**
 * Kollator's browser client: from a front's address to an open WebRTC data channel with one of its workers,
 * kept open, and the worker's files over it. No dependencies.
 *
 *     import { KollatorClient } from "/static/kollator.js";
 *
 *     const client = new KollatorClient({ region: "eu-west" });
 *     client.addEventListener("phase", ({ detail }) => console.log(detail.name, detail.state, detail.ms));
 *     await client.connect();
 *     const { files } = await client.list();
 *     const { blob, verified } = await client.fetch(files[0].name);
 *     client.close();
 *
 * Events (CustomEvent; `detail` is given):
 *
 * - `state`    `{state, code, message, retryInMs}`: see `ClientState`
 * - `phase`    `{name, state, ms, message}`: see `Phase`
 * - `open`     `{worker: {id, region}, node, session, ms}`: the channel is open, `ms` after the offer
 * - `close`    `{worker, code, message}`: an open channel has closed; the client connects again by itself
 * - `error`    `{code, message, fatal}`: told as it happens; only after a `fatal` one the client gives up
 * - `files`    `{files, truncated}`: an answer to `list`
 * - `progress` `{id, name, received, size, bytesPerSecond}`: of each `fetch`, about ten times a second
 */

import { Backoff, jittered, Pause } from "./backoff.js";
import { bootstrap, isWorker, workers } from "./bootstrap.js";
import { asError, KollatorError } from "./errors.js";
import { FileChannel } from "./files.js";
import { Peer } from "./peer.js";
import { PHASES, Phases } from "./phases.js";
import { Signaling } from "./signaling.js";

export { KollatorError, PHASES };

const OF_AN_ATTEMPT = Object.freeze(["offer", "ice", "channel"]);
const NO_WORKERS_MS = 5000; // Between questions for a worker when the front does not say how long to wait.
const MAX_EXCLUDED = 256; // The front takes no longer list.

const STEADY_MS = 10_000; // A channel that lasted so long was a good one: the next wait is short again.

/**
 * @typedef {import("./signaling.js").WorkerRef} WorkerRef
 * @typedef {import("./files.js").Listing} Listing
 * @typedef {import("./files.js").FetchedFile} FetchedFile
 * @typedef {import("./files.js").Progress} Progress
 * @typedef {import("./files.js").FetchOptions} FetchOptions
 * @typedef {import("./phases.js").Phase} Phase
 *
 * @typedef {"idle"|"connecting"|"waiting"|"open"|"closed"|"failed"} ClientState `waiting`: tries again after
 *   `retryInMs`, because of `code`; `closed`: by `close()`; `failed`: gave up, because of `code`
 *
 * @typedef {object} ClientOptions
 * @property {string} [base] URL of the front; default: where the page came from
 * @property {string} [region] asks for a worker there
 * @property {string[]} [exclude] ids of workers not wanted
 * @property {RTCIceServer[]} [iceServers] in place of those the front names
 * @property {number} [attemptTimeoutMs] for one worker, from the offer to the open channel; default 10,000
 * @property {() => number} [random] 0 to below 1, for the jitter of waiting times
 */

export class KollatorClient extends EventTarget {
  #options;
  #base;
  /** @type {ClientState} */
  #state = "idle";
  #phases = new Phases((phase) => this.#emit("phase", phase));
  /** @type {AbortController|null} */
  #stop = null;
  /** @type {Promise<void>|null} */
  #connected = null;
  /** @type {(problem?: KollatorError) => void} */
  #settle = () => {};
  /** @type {Signaling|null} */
  #signaling = null;
  /** @type {Peer|null} */
  #peer = null;
  /** @type {FileChannel|null} */
  #files = null;
  /** @type {RTCIceServer[]} */
  #iceServers = [];
  #node = "";
  #awaitsSignaling = false;
  /** @type {WorkerRef[]} */
  #queue = [];
  /** @type {Set<string>} */
  #tried = new Set();
  #backoff;
  #losses;
  #pause = new Pause();

  /** @param {ClientOptions} [options] @throws {TypeError} for a `base` that is not a URL */
  constructor(options = {}) {
    super();
    this.#options = options;
    this.#base = new URL(options.base ?? location.origin);
    this.#backoff = new Backoff({ baseMs: 1000, random: options.random });
    this.#losses = new Backoff({ baseMs: 1000, random: options.random });
  }

  /** @returns {boolean} whether this browser has what it takes */
  static get supported() {
    return typeof RTCPeerConnection === "function" && typeof WebSocket === "function";
  }

  /** @returns {ClientState} */
  get state() {
    return this.#state;
  }

  /** @returns {Phase[]} all of them, in order */
  get phases() {
    return this.#phases.all();
  }

  /**
   * Starts, and goes on by itself until `close`: through fronts that drain, workers that go and networks that
   * change.
   * @returns {Promise<void>} once the first channel is open
   * @throws {KollatorError} when the client gives up or is closed before
   */
  connect() {
    if (this.#connected && this.#stop) return this.#connected;
    const connected = new Promise((resolve, reject) => {
      this.#settle = (problem) => (problem ? reject(problem) : resolve(undefined));
    });
    connected.catch(() => {}); // Who follows the events need not await this.
    this.#connected = /** @type {Promise<void>} */ (connected);
    this.#stop = new AbortController();
    this.#tried.clear();
    this.#queue = [];
    if (KollatorClient.supported) this.#run(this.#stop.signal);
    else this.#giveUp(new KollatorError("unsupported", "This browser has no WebRTC.", { fatal: true }));
    return this.#connected;
  }

  /** Does not wait any longer for the next attempt. */
  retryNow() {
    this.#pause.end();
    this.#signaling?.retryNow();
  }

  /** Says bye to the worker and closes everything. `connect` starts anew. */
  close() {
    const problem = new KollatorError("closed", "The client was closed.");
    if (!this.#stop) return;
    this.#tearDown(problem);
    this.#setState("closed", problem);
  }

  /**
   * What the worker offers. Also dispatched as `files`.
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Listing>}
   * @throws {KollatorError} `closed` when no channel is open; see `FileChannel.list`
   */
  async list(options) {
    const listing = await this.#channel().list(options);
    this.#emit("files", listing);
    return listing;
  }

  /**
   * One file; its SHA-256 is computed as it arrives and compared with the worker's.
   * @param {string} name as listed
   * @param {FetchOptions} [options]
   * @returns {Promise<FetchedFile>} look at `verified`
   * @throws {KollatorError} `closed` when no channel is open; see `FileChannel.fetch`
   */
  async fetch(name, options = {}) {
    return this.#channel().fetch(name, {
      ...options,
      onprogress: (progress) => {
        options.onprogress?.(progress);
        this.#emit("progress", progress);
      },
    });
  }

  #channel() {
    if (this.#files) return this.#files;
    throw new KollatorError("closed", "No data channel is open.");
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    while (!signal.aborted) {
      try {
        const worker = await this.#nextWorker(signal);
        const problem = await this.#meet(worker, signal);
        if (signal.aborted) return;
        if (problem.code === "connection-lost" || problem.code === "rate-limited") throw problem;
        this.#tell(problem); // And the next worker, at once.
      } catch (problem) {
        if (signal.aborted) return;
        await this.#recover(asError(problem), signal);
      }
    }
  }

  /** @param {AbortSignal} signal */
  async #nextWorker(signal) {
    this.#setState("connecting");
    const signaling = this.#signaling ?? (await this.#bootstrap(signal));
    this.#awaitsSignaling = true;
    await signaling.ready(signal).finally(() => (this.#awaitsSignaling = false));
    if (this.#queue.length === 0) await this.#assign(signaling, signal);
    return /** @type {WorkerRef} */ (this.#queue.shift());
  }

  /** @param {AbortSignal} signal */
  async #bootstrap(signal) {
    this.#phases.reset();
    this.#phases.set("bootstrap", "active");
    const answer = await bootstrap(this.#base, this.#wish(), signal).catch((problem) => {
      if (!signal.aborted) this.#phases.set("bootstrap", "failed", problem.message);
      throw problem;
    });
    this.#phases.set("bootstrap", "done");
    this.#queue = [answer.worker, ...answer.alternates];
    this.#iceServers = answer.iceServers;
    this.#node = answer.node;
    this.#signaling = new Signaling({
      url: answer.signaling,
      ticket: answer.ticket,
      random: this.#options.random,
      onconnecting: () => {
        this.#phases.set("signaling", "active");
        if (this.#awaitsSignaling) this.#setState("connecting");
      },
      onwelcome: (welcome) => this.#welcomed(welcome),
      onmessage: (message) => this.#receive(message),
      ondown: (down) => this.#down(down),
      onstop: (problem) => this.#stopped(problem),
    });
    return this.#signaling;
  }

  #wish() {
    const exclude = [...(this.#options.exclude ?? []), ...this.#tried].slice(0, MAX_EXCLUDED);
    return { region: this.#options.region, exclude };
  }

  /** @param {Signaling} signaling @param {AbortSignal} signal */
  async #assign(signaling, signal) {
    const { worker, alternates } = await signaling.request({ type: "assign", ...this.#wish() }, signal);
    if (!isWorker(worker)) throw new KollatorError("no-workers", "The front has no worker to offer.");
    const offered = [worker, ...workers(alternates)];
    this.#queue = offered.filter(({ id }) => !this.#tried.has(id));
    if (this.#queue.length > 0) return;
    // Only those that have just failed: again, but after a wait.
    this.#queue = offered;
    throw new KollatorError("no-answer", "No worker could be reached.");
  }

  /**
   * One attempt at one worker and, when it succeeds, the life of the channel.
   * @param {WorkerRef} worker
   * @param {AbortSignal} signal
   * @returns {Promise<KollatorError>} why it is over: `connection-lost` when the channel had been open
   */
  async #meet(worker, signal) {
    this.#setState("connecting");
    this.#tried.add(worker.id);
    this.#phases.reset(OF_AN_ATTEMPT);
    let openedMs = 0;
    const problem = await new Promise((resolve) => {
      const peer = new Peer({
        worker,
        iceServers: this.#options.iceServers ?? this.#iceServers,
        timeoutMs: this.#options.attemptTimeoutMs ?? 10_000,
        send: (message) => this.#signaling?.send(message),
        onphase: (name, state, message) => this.#phases.set(name, state, message),
        onopen: (channel, ms) => {
          openedMs = performance.now();
          this.#opened(peer, channel, ms);
        },
        onend: resolve,
      });
      this.#peer = peer;
      peer.start();
    });
    const session = this.#peer?.session ?? "";
    this.#signaling?.drop(session);
    this.#peer = null;
    this.#files?.close(problem);
    this.#files = null;
    if (!openedMs) return problem;
    if (performance.now() - openedMs >= STEADY_MS) this.#losses.reset();
    this.#queue = []; // Ask who is there now.
    if (!signal.aborted) this.#phases.reset(OF_AN_ATTEMPT);
    this.#emit("close", { worker, code: problem.code, message: problem.message });
    return signal.aborted ? problem : new KollatorError("connection-lost", problem.message);
  }

  /** @param {Peer} peer @param {RTCDataChannel} channel @param {number} ms */
  #opened(peer, channel, ms) {
    this.#tried.clear();
    this.#backoff.reset();
    this.#files = new FileChannel(channel);
    this.#setState("open");
    this.#emit("open", { worker: peer.worker, node: this.#node, session: peer.session, ms });
    this.#settle();
  }

  /**
   * What to do when no worker can be asked: give up, bootstrap again, or wait.
   * @param {KollatorError} problem
   * @param {AbortSignal} signal
   */
  async #recover(problem, signal) {
    if (problem.fatal) return this.#giveUp(problem);
    this.#tell(problem);
    if (problem.code === "signaling-unreachable") {
      this.#signaling?.close();
      this.#signaling = null; // It has waited between its attempts; another front may be there by now.
      return;
    }
    let because = problem;
    if (problem.code === "no-workers" && this.#tried.size > 0) {
      because = new KollatorError("no-answer", "No worker could be reached.");
    }
    this.#tried.clear();
    const retryInMs = this.#wait(because);
    this.#setState("waiting", because, retryInMs);
    await this.#pause.wait(retryInMs, signal).catch(() => {});
  }

  /** @param {KollatorError} problem @returns {number} ms to wait because of it */
  #wait({ code, retryInMs }) {
    if (code === "no-workers") return jittered(retryInMs || NO_WORKERS_MS, this.#options.random);
    return (code === "connection-lost" ? this.#losses : this.#backoff).next(retryInMs);
  }

  /** @param {import("./signaling.js").Welcome} welcome */
  #welcomed(welcome) {
    this.#iceServers = welcome.iceServers;
    this.#node = welcome.node;
    this.#phases.set("signaling", "done");
    if (welcome.sameId || !this.#peer || this.#peer.opened) return;
    this.#queue.unshift(this.#peer.worker);
    this.#peer.end(new KollatorError("id-changed", "The front no longer knows this client: once more."));
  }

  /** @param {any} message */
  #receive(message) {
    const peer = this.#peer;
    if (["offer", "answer", "candidate", "bye"].includes(message.type)) {
      const isOld = (message.session ?? peer?.session) !== peer?.session;
      if (peer && message.from === peer.worker.id && !isOld) peer.receive(message);
    } else if (message.type === "worker-lost") this.#workerLost(message);
    else if (message.type === "error") {
      const [session] = String(message.ref ?? "").split(".");
      if (peer && session === peer.session) peer.refused(String(message.code), String(message.message));
      else if (!message.ref) this.#tell(new KollatorError(String(message.code), String(message.message)));
    }
  }

  /** @param {{worker: string, assigned: WorkerRef|null}} message */
  #workerLost({ worker, assigned }) {
    this.#queue = this.#queue.filter(({ id }) => id !== worker);
    const isOurs = this.#peer?.worker.id === worker;
    if (this.#peer?.opened) {
      if (isOurs) this.#peer.forsake();
      return;
    }
    if (isWorker(assigned)) this.#queue.unshift(/** @type {WorkerRef} */ (assigned));
    if (isOurs) this.#peer?.end(new KollatorError("worker-lost", "The worker is gone."));
  }

  /** @param {{code: number, reason: string, retryInMs: number, failures: number}} down */
  #down({ code, reason, retryInMs, failures }) {
    const message = reason || `closed with code ${code}`;
    this.#phases.set("signaling", "failed", message);
    const problem = new KollatorError("signaling-down", `The front's signaling went away (${message}).`);
    if (this.#awaitsSignaling && failures < 3) this.#setState("waiting", problem, retryInMs);
  }

  /** The front turned this client away for good; an open channel lives on. @param {KollatorError} problem */
  #stopped(problem) {
    this.#phases.set("signaling", "failed", problem.message);
    if (this.#peer?.opened) this.#tell(problem);
    else this.#giveUp(problem);
  }

  /** @param {KollatorError} problem */
  #giveUp(problem) {
    this.#tearDown(problem);
    this.#tell(problem, true);
    this.#setState("failed", problem);
  }

  /** @param {KollatorError} problem */
  #tearDown(problem) {
    this.#stop?.abort(problem);
    this.#stop = null;
    this.#peer?.end(problem);
    this.#signaling?.close();
    this.#signaling = null;
    this.#settle(problem);
  }

  /** @param {ClientState} state @param {KollatorError|null} [because] @param {number|null} [retryInMs] */
  #setState(state, because = null, retryInMs = null) {
    if (state === this.#state && state !== "waiting") return;
    this.#state = state;
    this.#emit("state", { state, code: because?.code ?? null, message: because?.message ?? "", retryInMs });
  }

  /** @param {KollatorError} problem @param {boolean} [fatal] */
  #tell({ code, message }, fatal = false) {
    this.#emit("error", { code, message, fatal });
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

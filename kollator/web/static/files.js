/**
 * The files of a worker over an open data channel (label `kollator`, protocol `kollator.files.v1`).
 *
 * Requests and their answers are JSON text messages; the content comes as binary messages of 4 bytes
 * (the request's id, big-endian) and at most 16 KiB - 4 of data.
 */

import { KollatorError } from "./errors.js";
import { Sha256 } from "./sha256.js";

export const CHANNEL_LABEL = "kollator";
export const CHANNEL_PROTOCOL = "kollator.files.v1";

// Chunks go on in batches: a Blob part or a disk write for each 16 KiB costs more.
const BATCH_BYTES = 1 << 20;
// Parts of a Blob are merged, so that the browser may move them out of memory.
const MERGE_PARTS = 64;
// A channel cannot be told to wait, so a sink that falls so far behind ends the fetch.
const SINK_BACKLOG_BYTES = 64 << 20;
const STALLED_MS = 30_000;
const REPORT_MS = 100;
const MAX_FILES = 10_000;
const MAX_ID = 0xffffffff;

/**
 * @typedef {{name: string, size: number}} FileEntry `size` in bytes
 * @typedef {{files: FileEntry[], truncated: boolean}} Listing
 * @typedef {{id: number, name: string, received: number, size: number, bytesPerSecond: number}} Progress
 * @typedef {object} Sink where a stream goes instead of into memory: a FileSystemWritableFileStream, or the
 *   writer of a WritableStream
 * @property {(data: Uint8Array) => unknown} write may return a promise
 * @property {() => unknown} [close] called when the hash is right: keep it
 * @property {(reason?: unknown) => unknown} [abort] called otherwise: discard it
 * @typedef {object} FetchOptions
 * @property {(progress: Progress) => void} [onprogress] about ten times a second
 * @property {AbortSignal} [signal] cancels
 * @property {Sink|WritableStream} [sink] takes the content, which then is not kept in memory
 * @typedef {object} FetchedFile
 * @property {string} name
 * @property {number} size bytes
 * @property {string} sha256 what the worker says it read, hex
 * @property {string} computed what arrived here, hex
 * @property {boolean} verified whether the two agree. When not, neither keep nor use the data
 * @property {Blob} [blob] the content, unless a sink took it
 */

/** The default sink: a Blob of parts. */
class BlobSink {
  /** @type {Blob[]} */
  #parts = [];
  #small = 0;

  /** @param {Uint8Array} data */
  write(data) {
    this.#parts.push(new Blob([data]));
    this.#small += 1;
    if (this.#small === MERGE_PARTS) {
      this.#parts.push(new Blob(this.#parts.splice(-MERGE_PARTS)));
      this.#small = 0;
    }
  }

  /** @returns {Blob} never of an active type: what a stranger's worker sends must not run in this origin */
  blob() {
    return new Blob(this.#parts, { type: "application/octet-stream" });
  }
}

/** One request on its way. `ended`: the worker has said its last word on it. */
class Exchange {
  ended = false;

  /** @param {number} id @param {(value: any) => void} resolve @param {(reason: unknown) => void} reject */
  constructor(id, resolve, reject) {
    this.id = id;
    this.resolve = resolve;
    this.reject = reject;
    this.lastMs = performance.now();
  }

  /** @param {any} message */
  receive(message) {
    throw new KollatorError("bad-answer", `the worker answered with “${String(message.type)}”`);
  }

  /** @param {Uint8Array} _data */
  take(_data) {
    throw new KollatorError("bad-answer", "the worker sent content that was not due");
  }

  /** @param {unknown} _reason */
  abandon(_reason) {}
}

class ListRequest extends Exchange {
  /** @type {FileEntry[]} */
  #files = [];

  receive(message) {
    if (message.type !== "listing" || !Array.isArray(message.files)) return super.receive(message);
    const room = MAX_FILES - this.#files.length;
    const named = message.files.filter(isEntry);
    this.#files.push(...named.slice(0, room).map(({ name, size }) => ({ name, size })));
    const truncated = message.truncated === true || named.length > room;
    if (message.more !== true || named.length > room) this.resolve({ files: this.#files, truncated });
  }
}

class FetchRequest extends Exchange {
  #hash = new Sha256();
  #batch = new Uint8Array(0);
  #batchBytes = 0;
  #backlogBytes = 0;
  #received = 0;
  #size = -1;
  #writes = Promise.resolve();
  #rate = { atMs: 0, received: 0, bytesPerSecond: 0 };

  /**
   * @param {number} id
   * @param {(value: FetchedFile) => void} resolve
   * @param {(reason: unknown) => void} reject
   * @param {string} name
   * @param {Sink|undefined} sink
   * @param {(progress: Progress) => void} report
   */
  constructor(id, resolve, reject, name, sink, report) {
    super(id, resolve, reject);
    this.name = name;
    this.blobSink = sink ? null : new BlobSink();
    /** @type {Sink} */
    this.sink = sink ?? this.blobSink;
    this.report = report;
  }

  receive(message) {
    if (message.type === "file" && isSize(message.size) && this.#size < 0) {
      this.#size = message.size;
      this.#rate.atMs = performance.now();
      this.#progress();
    } else if (message.type === "end" && this.#size >= 0 && typeof message.sha256 === "string") {
      if (this.#received !== this.#size) {
        throw new KollatorError("short", `${this.#received} of ${this.#size} bytes arrived`);
      }
      this.#finish(message.sha256.toLowerCase()).then(this.resolve, this.reject);
    } else super.receive(message);
  }

  take(data) {
    if (this.#size < 0) return super.take(data);
    if (this.#received + data.length > this.#size) {
      throw new KollatorError("too-long", "the worker sent more than the file's size");
    }
    this.#hash.update(data);
    this.#received += data.length;
    for (let at = 0; at < data.length; ) {
      if (this.#batchBytes === this.#batch.length) {
        this.#flush();
        const leftBytes = this.#size - this.#received + data.length - at;
        this.#batch = new Uint8Array(Math.min(BATCH_BYTES, leftBytes));
      }
      const part = data.subarray(at, at + this.#batch.length - this.#batchBytes);
      this.#batch.set(part, this.#batchBytes);
      this.#batchBytes += part.length;
      at += part.length;
    }
    if (performance.now() - this.#rate.atMs >= REPORT_MS) this.#progress();
  }

  abandon(reason) {
    this.#batch = new Uint8Array(0);
    this.#batchBytes = 0;
    Promise.resolve()
      .then(() => this.sink.abort?.(reason))
      .catch(() => {}); // It is being thrown away.
  }

  #flush() {
    if (this.#batchBytes === 0) return;
    const data = this.#batch.subarray(0, this.#batchBytes);
    this.#batchBytes = 0;
    if (this.blobSink) return void this.blobSink.write(data);
    this.#backlogBytes += data.length;
    if (this.#backlogBytes > SINK_BACKLOG_BYTES) {
      throw new KollatorError("slow-sink", "the file arrives faster than it can be written");
    }
    this.#writes = this.#writes.then(async () => {
      await this.sink.write(data);
      this.#backlogBytes -= data.length;
    });
    this.#writes.catch(this.reject);
  }

  /** @param {string} sha256 */
  async #finish(sha256) {
    this.#flush();
    await this.#writes;
    const computed = this.#hash.hex();
    const verified = computed === sha256;
    if (verified) await this.sink.close?.();
    else await this.sink.abort?.(new KollatorError("mismatch", "the SHA-256 does not match"));
    this.#progress();
    const blob = this.blobSink?.blob();
    return { name: this.name, size: this.#size, sha256, computed, verified, ...(blob && { blob }) };
  }

  #progress() {
    const nowMs = performance.now();
    const tookMs = nowMs - this.#rate.atMs;
    if (tookMs > 0 && this.#received > this.#rate.received) {
      const now = ((this.#received - this.#rate.received) / tookMs) * 1000;
      const before = this.#rate.bytesPerSecond || now;
      const average = before + (now - before) * Math.min(1, tookMs / 1000); // It moves over about a second.
      this.#rate = { atMs: nowMs, received: this.#received, bytesPerSecond: average };
    }
    const { id, name } = this;
    const { bytesPerSecond } = this.#rate;
    this.report({ id, name, received: this.#received, size: this.#size, bytesPerSecond });
  }
}

/** The requests on one open data channel. */
export class FileChannel {
  #channel;
  /** @type {Map<number, Exchange>} */
  #open = new Map();
  #lastId = 0;
  /** @type {ReturnType<typeof setInterval>|null} */
  #watch = null;

  /** @param {RTCDataChannel} channel open */
  constructor(channel) {
    this.#channel = channel;
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => this.#receive(data);
  }

  /**
   * What the worker offers.
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Listing>} at most 10,000 files
   * @throws {KollatorError} the worker's error code, `closed`, `stalled`, `bad-answer`
   */
  list({ signal } = {}) {
    return this.#request(
      (id, resolve, reject) => new ListRequest(id, resolve, reject),
      (id) => ({ type: "list", id }),
      signal,
    );
  }

  /**
   * One file, hashed as it arrives.
   * @param {string} name as listed
   * @param {FetchOptions} [options]
   * @returns {Promise<FetchedFile>}
   * @throws {KollatorError} the worker's error code, `closed`, `stalled`, `short`, `too-long`, `slow-sink`,
   *   `bad-answer`; the signal's reason when it was cancelled; what the sink threw
   */
  fetch(name, { onprogress = () => {}, signal, sink } = {}) {
    const writer = sink && "getWriter" in sink && !("write" in sink) ? sink.getWriter() : sink;
    return this.#request(
      (id, resolve, reject) =>
        new FetchRequest(id, resolve, reject, name, /** @type {Sink|undefined} */ (writer), onprogress),
      (id) => ({ type: "fetch", id, name }),
      signal,
    );
  }

  /**
   * Ends every open request; the channel itself is its owner's.
   * @param {unknown} reason
   */
  close(reason) {
    for (const request of [...this.#open.values()]) request.reject(reason);
  }

  #request(make, message, signal) {
    return new Promise((resolve, reject) => {
      const id = this.#freeId();
      const over = () => {
        signal?.removeEventListener("abort", aborted);
        const wasOpen = this.#open.delete(id);
        if (this.#open.size === 0) this.#watchStalls(false);
        return wasOpen;
      };
      const aborted = () => request.reject(signal?.reason);
      /** @type {Exchange} */
      const request = make(
        id,
        (/** @type {any} */ value) => over() && resolve(value),
        (/** @type {unknown} */ reason) => {
          if (!over()) return;
          if (!request.ended) this.#send({ type: "cancel", id });
          request.abandon(reason);
          reject(reason);
        },
      );
      this.#open.set(id, request);
      request.ended = true; // Nothing to cancel before it is sent.
      if (signal?.aborted) return aborted();
      if (this.#channel.readyState !== "open") {
        return request.reject(new KollatorError("closed", "the data channel is closed"));
      }
      signal?.addEventListener("abort", aborted);
      this.#watchStalls(true);
      request.ended = false;
      this.#send(message(id));
    });
  }

  #freeId() {
    do this.#lastId = this.#lastId === MAX_ID ? 1 : this.#lastId + 1;
    while (this.#open.has(this.#lastId));
    return this.#lastId;
  }

  #receive(data) {
    const message = typeof data === "string" ? parse(data) : null;
    const id = message ? message.id : data.byteLength >= 4 ? new DataView(data).getUint32(0) : -1;
    const request = this.#open.get(id);
    if (!request) return; // The rest of a cancelled fetch.
    request.lastMs = performance.now();
    try {
      if (!message) return request.take(new Uint8Array(data, 4));
      request.ended = message.type === "error" || message.type === "end";
      if (message.type !== "error") return request.receive(message);
      request.reject(new KollatorError(String(message.code), String(message.message ?? message.code)));
    } catch (problem) {
      request.reject(problem);
    }
  }

  #send(message) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify(message));
  }

  /** @param {boolean} on */
  #watchStalls(on) {
    if (on === (this.#watch !== null)) return;
    if (!on) {
      clearInterval(this.#watch);
      this.#watch = null;
      return;
    }
    this.#watch = setInterval(() => {
      const nowMs = performance.now();
      for (const request of [...this.#open.values()]) {
        if (nowMs - request.lastMs < STALLED_MS) continue;
        request.reject(new KollatorError("stalled", `nothing came for ${STALLED_MS / 1000} seconds`));
      }
    }, STALLED_MS / 6);
  }
}

/** @param {any} file */
function isEntry(file) {
  return typeof file?.name === "string" && isSize(file.size);
}

/** @param {unknown} size */
function isSize(size) {
  return Number.isSafeInteger(size) && Number(size) >= 0;
}

/** @param {string} text */
function parse(text) {
  try {
    const message = JSON.parse(text);
    return typeof message === "object" && message !== null ? message : {};
  } catch {
    return {};
  }
}

/**
 * Waiting times between attempts: exponential, capped, jittered, so that a front that comes back is not met
 * by all its clients in the same instant.
 */

/** The next waiting time, each about twice the one before. */
export class Backoff {
  #baseMs;
  #capMs;
  #random;
  #failures = 0;

  /**
   * @param {{baseMs?: number, capMs?: number, random?: () => number}} [options] `random`: 0 to below 1
   */
  constructor({ baseMs = 500, capMs = 30_000, random = Math.random } = {}) {
    this.#baseMs = baseMs;
    this.#capMs = capMs;
    this.#random = random;
  }

  /** How often `next` was called since the last `reset`. */
  get failures() {
    return this.#failures;
  }

  /**
   * @param {number} [atLeastMs] what the other side asked for (Retry-After); jitter is added on top of it
   * @returns {number} milliseconds to wait: between half of the exponential step and the whole of it
   */
  next(atLeastMs = 0) {
    const stepMs = Math.min(this.#capMs, this.#baseMs * 2 ** Math.min(this.#failures, 20));
    this.#failures += 1;
    const waitMs = stepMs * (0.5 + 0.5 * this.#random());
    return Math.round(atLeastMs > waitMs ? jittered(atLeastMs, this.#random) : waitMs);
  }

  /** The next wait is short again. */
  reset() {
    this.#failures = 0;
  }
}

/**
 * @param {number} ms what was asked for
 * @param {() => number} [random] 0 to below 1
 * @returns {number} that, or up to a fifth more
 */
export function jittered(ms, random = Math.random) {
  return Math.round(ms * (1 + 0.2 * random()));
}

/** One wait at a time, which can be cut short. */
export class Pause {
  /** @type {(() => void)|null} */
  #wake = null;

  /**
   * @param {number} ms
   * @param {AbortSignal} [signal] ends the wait with its reason
   * @returns {Promise<void>}
   */
  wait(ms, signal) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const over = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
        this.#wake = null;
      };
      const aborted = () => {
        over();
        reject(signal?.reason);
      };
      this.#wake = () => {
        over();
        resolve();
      };
      const timer = setTimeout(this.#wake, ms);
      signal?.addEventListener("abort", aborted);
    });
  }

  /** Ends the wait now, if there is one. */
  end() {
    this.#wake?.();
  }
}

/**
 * A Retry-After header (RFC 9110, section 10.2.3).
 * @param {string|null} value seconds or an HTTP date
 * @param {number} nowMs Unix time
 * @returns {number} milliseconds, 0 when it says nothing, at most five minutes
 */
export function retryAfterMs(value, nowMs) {
  if (!value) return 0;
  const ms = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - nowMs;
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), 300_000) : 0;
}

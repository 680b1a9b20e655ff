/** How far the client is on its way to an open channel, and how long each step took. */

/** The way to an open channel, in order. */
export const PHASES = Object.freeze(["bootstrap", "signaling", "offer", "ice", "channel"]);

/**
 * @typedef {"bootstrap"|"signaling"|"offer"|"ice"|"channel"} PhaseName
 * @typedef {"pending"|"active"|"done"|"failed"} PhaseState
 * @typedef {object} Phase
 * @property {PhaseName} name
 * @property {PhaseState} state
 * @property {number|null} ms how long it took, once it is done or has failed
 * @property {string} message why it failed
 */

/** The five phases, with a clock. */
export class Phases {
  /** @type {Map<string, Phase & {startedMs: number}>} */
  #phases = new Map();
  #onchange;

  /** @param {(phase: Phase) => void} onchange */
  constructor(onchange) {
    this.#onchange = onchange;
    for (const name of PHASES) {
      const phase = { state: "pending", ms: null, message: "", startedMs: 0 };
      this.#phases.set(name, /** @type {any} */ ({ name, ...phase }));
    }
  }

  /** @returns {Phase[]} all of them, in order */
  all() {
    return [...this.#phases.values()].map(({ name, state, ms, message }) => ({ name, state, ms, message }));
  }

  /**
   * @param {PhaseName} name
   * @param {PhaseState} state
   * @param {string} [message] why it failed
   */
  set(name, state, message = "") {
    const phase = this.#phases.get(name);
    if (!phase || (phase.state === state && state !== "active")) return;
    const nowMs = performance.now();
    const ended = (state === "done" || state === "failed") && phase.state === "active";
    phase.ms = ended ? Math.round(nowMs - phase.startedMs) : null;
    if (state === "active") phase.startedMs = nowMs;
    phase.state = state;
    phase.message = message;
    this.#onchange({ name, state, ms: phase.ms, message });
  }

  /** Back to pending. @param {readonly string[]} [names] default: all of them */
  reset(names = PHASES) {
    for (const name of names) this.set(/** @type {PhaseName} */ (name), "pending");
  }
}

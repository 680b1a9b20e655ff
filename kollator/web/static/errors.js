/** A failure and its code: the signaling contract's, the data channel's, or one of the client's own. */
export class KollatorError extends Error {
  /**
   * @param {string} code
   * @param {string} message for people
   * @param {{fatal?: boolean, retryInMs?: number}} [more] `fatal`: trying again would not help
   */
  constructor(code, message, more = {}) {
    super(message);
    this.name = "KollatorError";
    this.code = code;
    this.fatal = more.fatal === true;
    this.retryInMs = more.retryInMs;
  }
}

/**
 * @param {unknown} problem whatever was thrown
 * @returns {KollatorError}
 */
export function asError(problem) {
  return problem instanceof KollatorError ? problem : new KollatorError("internal", String(problem));
}

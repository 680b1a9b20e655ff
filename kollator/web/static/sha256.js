/**
 * SHA-256 (FIPS 180-4, sections 5 and 6.2), incremental.
 *
 * The browser's own `crypto.subtle.digest` wants the whole message at once and is missing on pages that came
 * over plain HTTP from another machine; a file of many gigabytes is neither.
 */

// Signed words: sums and shifts then stay in the engine's 32-bit integers, twice as fast.
const K = Int32Array.from([
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
]);
const H0 = [
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];
const BLOCK_BYTES = 64;

/** A running SHA-256. `new Sha256().update(a).update(b).hex()` is the digest of `a` followed by `b`. */
export class Sha256 {
  #state = Int32Array.from(H0);
  #schedule = new Int32Array(64);
  #block = new Uint8Array(BLOCK_BYTES);
  #blockBytes = 0;
  #totalBytes = 0;
  /** @type {Uint8Array|null} */
  #digest = null;

  /**
   * Takes more of the message in.
   * @param {Uint8Array} data any length; it is read now and not kept
   * @returns {this}
   * @throws {Error} after `digest` or `hex`
   */
  update(data) {
    if (this.#digest) throw new Error("this digest is finished");
    this.#totalBytes += data.length;
    let at = 0;
    if (this.#blockBytes > 0) {
      at = Math.min(data.length, BLOCK_BYTES - this.#blockBytes);
      this.#block.set(data.subarray(0, at), this.#blockBytes);
      this.#blockBytes += at;
      if (this.#blockBytes < BLOCK_BYTES) return this;
      this.#compress(this.#block, 0);
      this.#blockBytes = 0;
    }
    for (; at + BLOCK_BYTES <= data.length; at += BLOCK_BYTES) this.#compress(data, at);
    this.#block.set(data.subarray(at));
    this.#blockBytes = data.length - at;
    return this;
  }

  /**
   * Ends the message.
   * @returns {Uint8Array} 32 bytes, the same at each call
   */
  digest() {
    if (this.#digest) return this.#digest;
    const tail = new Uint8Array(this.#blockBytes < 56 ? BLOCK_BYTES : 2 * BLOCK_BYTES);
    tail.set(this.#block.subarray(0, this.#blockBytes));
    tail[this.#blockBytes] = 0x80;
    const view = new DataView(tail.buffer);
    // The length in bits as 64 bits: the upper word counts 2^29 bytes, which doubles hold exactly up to 2^53.
    view.setUint32(tail.length - 8, Math.floor(this.#totalBytes / 0x20000000));
    view.setUint32(tail.length - 4, (this.#totalBytes % 0x20000000) * 8);
    for (let at = 0; at < tail.length; at += BLOCK_BYTES) this.#compress(tail, at);
    const digest = new Uint8Array(32);
    const words = new DataView(digest.buffer);
    this.#state.forEach((word, index) => words.setInt32(index * 4, word));
    this.#digest = digest;
    return digest;
  }

  /**
   * Ends the message.
   * @returns {string} 64 lower-case hex digits
   */
  hex() {
    return Array.from(this.digest(), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  /**
   * One block into the state (FIPS 180-4, 6.2.2).
   * @param {Uint8Array} data
   * @param {number} at where the block starts
   */
  #compress(data, at) {
    const w = this.#schedule;
    for (let t = 0; t < 16; t += 1, at += 4) {
      w[t] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
    }
    for (let t = 16; t < 64; t += 1) {
      const x = w[t - 15];
      const y = w[t - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[t] = (w[t - 16] + s0 + w[t - 7] + s1) | 0;
    }
    const state = this.#state;
    let a = state[0];
    let b = state[1];
    let c = state[2];
    let d = state[3];
    let e = state[4];
    let f = state[5];
    let g = state[6];
    let h = state[7];
    for (let t = 0; t < 64; t += 1) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + (g ^ (e & (f ^ g))) + K[t] + w[t]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) | (c & (a | b)))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
  }
}

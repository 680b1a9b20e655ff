/**
 * One attempt at one worker: an RTCPeerConnection with its data channel, negotiated over signaling messages
 * by the perfect negotiation pattern (W3C WebRTC, section 10.7) with trickle ICE (RFC 8838).
 */

import { KollatorError } from "./errors.js";
import { CHANNEL_LABEL, CHANNEL_PROTOCOL } from "./files.js";

const DISCONNECTED_MS = 3000; // ICE often comes back by itself within that; then it is restarted.
const UNHEARD = new Set(["bye", "unknown-target", "worker-lost", "id-changed"]); // Nobody is there for a bye.
const LOST = "The connection to the worker was lost.";
const MAX_EARLY_CANDIDATES = 64;

/**
 * @typedef {"offer"|"ice"|"channel"} PeerPhase
 * @typedef {object} PeerOptions
 * @property {import("./signaling.js").WorkerRef} worker
 * @property {RTCIceServer[]} iceServers
 * @property {number} timeoutMs from the offer to the open channel, and for an ICE restart
 * @property {boolean} [polite] whether this side gives way when two offers meet; default true
 * @property {(message: any) => void} send to the front
 * @property {(name: PeerPhase, state: "active"|"done"|"failed", message?: string) => void} onphase
 * @property {(channel: RTCDataChannel, ms: number) => void} onopen `ms` since the offer
 * @property {(problem: KollatorError) => void} onend it is over, and closed; called once
 */

export class Peer {
  #options;
  #polite;
  /** @type {RTCPeerConnection|null} */
  #pc = null;
  /** @type {RTCDataChannel|null} */
  #channel = null;
  #makingOffer = false;
  #ignoreOffer = false;
  #settingAnswer = false;
  /** @type {any[]} */
  #early = [];
  #refs = 0;
  #startedMs = 0;
  /** @type {PeerPhase} */
  #phase = "offer";
  #opened = false;
  #restarting = false;
  #forsaken = false;
  #fingerprint = "";
  #ended = false;
  /** @type {ReturnType<typeof setTimeout>|undefined} */
  #timer;

  /** @param {PeerOptions} options */
  constructor(options) {
    this.#options = options;
    this.#polite = options.polite ?? true;
    this.worker = options.worker;
    /** Names this attempt, so that late messages of another one are known as such. */
    this.session = randomHex(8);
  }

  /** Whether the data channel has opened. */
  get opened() {
    return this.#opened;
  }

  /** Makes the offer. */
  start() {
    this.#startedMs = performance.now();
    this.#enter("offer");
    this.#failAfter(this.#options.timeoutMs, "time-out", "The worker could not be reached in time.");
    try {
      this.#pc = new RTCPeerConnection({ iceServers: this.#options.iceServers });
    } catch (problem) {
      return this.#fail("bad-ice-servers", String(problem));
    }
    const pc = this.#pc;
    pc.onnegotiationneeded = () => this.#offer(pc);
    pc.onicecandidate = ({ candidate }) => this.#candidate(candidate);
    pc.oniceconnectionstatechange = () => this.#iceChanged(pc);
    pc.onconnectionstatechange = () => this.#connectionChanged(pc);
    this.#channel = pc.createDataChannel(CHANNEL_LABEL, { ordered: true, protocol: CHANNEL_PROTOCOL });
    this.#channel.onopen = () => this.#channelOpened();
    this.#channel.onclose = () => this.#fail("channel-closed", "The worker closed the data channel.");
  }

  /**
   * A message of this session from the worker.
   * @param {any} message offer, answer, candidate or bye
   */
  async receive(message) {
    const pc = this.#pc;
    if (this.#ended || !pc) return;
    try {
      if (message.type === "offer" || message.type === "answer") {
        await this.#description(pc, { type: message.type, sdp: String(message.sdp) });
      } else if (message.type === "candidate") await this.#remoteCandidate(pc, message.candidate);
      else if (message.type === "bye") {
        this.#fail("bye", `The worker ended the session${message.reason ? `: ${message.reason}` : ""}.`);
      }
    } catch (problem) {
      if (message.type === "candidate") return; // One that this browser cannot use: the others remain.
      this.#fail("bad-description", `The worker's ${message.type} was not accepted: ${problem}`);
    }
  }

  /**
   * The front refused a message of this session.
   * @param {string} code @param {string} message
   */
  refused(code, message) {
    const hopeless = code === "unknown-target" || code === "target-busy" || code === "forbidden";
    if (hopeless ? !this.#opened : this.#phase === "offer") this.#fail(code, message);
  }

  /** The front has lost the worker: an open channel may live on, but there is nobody to restart ICE with. */
  forsake() {
    this.#forsaken = true;
  }

  /**
   * Ends it.
   * @param {KollatorError} problem why
   */
  end(problem) {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    if (!this.#opened) this.#options.onphase(this.#phase, "failed", problem.message);
    if (!UNHEARD.has(problem.code)) this.#send({ type: "bye", reason: problem.code });
    if (this.#channel) this.#channel.onopen = this.#channel.onclose = this.#channel.onmessage = null;
    this.#channel?.close();
    this.#pc?.close();
    this.#options.onend(problem);
  }

  /** @param {string} code @param {string} message */
  #fail(code, message) {
    this.end(new KollatorError(code, message));
  }

  #send(message) {
    const { session, worker } = this;
    this.#options.send({ ...message, to: worker.id, session, ref: `${session}.${(this.#refs += 1)}` });
  }

  /** @param {PeerPhase} name */
  #enter(name) {
    this.#phase = name;
    this.#options.onphase(name, "active");
  }

  /** @param {PeerPhase} name @param {PeerPhase} next */
  #advance(name, next) {
    if (this.#phase !== name || this.#ended) return;
    this.#options.onphase(name, "done");
    this.#enter(next);
  }

  /** @param {RTCPeerConnection} pc */
  async #offer(pc) {
    try {
      this.#makingOffer = true;
      await pc.setLocalDescription();
      if (!this.#ended) this.#send({ type: pc.localDescription?.type, sdp: pc.localDescription?.sdp });
    } catch (problem) {
      this.#fail("bad-description", String(problem));
    } finally {
      this.#makingOffer = false;
    }
  }

  /** @param {RTCPeerConnection} pc @param {RTCSessionDescriptionInit} description */
  async #description(pc, description) {
    const ready = !this.#makingOffer && (pc.signalingState === "stable" || this.#settingAnswer);
    this.#ignoreOffer = description.type === "offer" && !ready && !this.#polite;
    if (this.#ignoreOffer) return;
    // An answer to an offer that was rolled back.
    if (description.type === "answer" && pc.signalingState !== "have-local-offer") return;
    // Another certificate is another process under the worker's name: it does not know this channel.
    const [fingerprint = ""] = /^a=fingerprint:.*$/m.exec(String(description.sdp)) ?? [];
    if (this.#opened && fingerprint !== this.#fingerprint) return this.#fail("connection-lost", LOST);
    this.#fingerprint = fingerprint;
    this.#settingAnswer = description.type === "answer";
    await pc.setRemoteDescription(description); // An offer that meets ours rolls ours back.
    this.#settingAnswer = false;
    if (this.#ended) return;
    if (description.type === "offer") {
      await pc.setLocalDescription();
      if (!this.#ended) this.#send({ type: "answer", sdp: pc.localDescription?.sdp });
    }
    this.#advance("offer", "ice");
    this.#iceChanged(pc);
    for (const candidate of this.#early.splice(0)) await this.#remoteCandidate(pc, candidate).catch(() => {});
  }

  /** @param {RTCPeerConnection} pc @param {RTCIceCandidateInit|null} candidate */
  async #remoteCandidate(pc, candidate) {
    if (!pc.remoteDescription) {
      if (this.#early.length < MAX_EARLY_CANDIDATES) this.#early.push(candidate);
      return;
    }
    try {
      await pc.addIceCandidate(candidate ?? undefined); // None: the end of the candidates.
    } catch (problem) {
      if (!this.#ignoreOffer) throw problem;
    }
  }

  /** @param {RTCIceCandidate|null} candidate */
  #candidate(candidate) {
    if (this.#ended || candidate?.candidate === "") return; // Null says the same a moment later.
    this.#send({ type: "candidate", candidate: candidate && candidate.toJSON() });
  }

  /** @param {RTCPeerConnection} pc */
  #iceChanged(pc) {
    const connected = pc.iceConnectionState === "connected" || pc.iceConnectionState === "completed";
    if (connected) this.#advance("ice", "channel");
  }

  /** @param {RTCPeerConnection} pc */
  #connectionChanged(pc) {
    if (this.#ended) return;
    const state = pc.connectionState;
    if (!this.#opened) {
      if (state === "failed") this.#fail("ice-failed", "No network path to the worker was found.");
      return;
    }
    if (state === "connected") {
      clearTimeout(this.#timer);
      this.#restarting = false;
    } else if (state === "failed") this.#restart(pc);
    else if (state === "disconnected" && !this.#restarting) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#restart(pc), DISCONNECTED_MS);
    }
  }

  /** @param {RTCPeerConnection} pc */
  #restart(pc) {
    if (this.#restarting || this.#forsaken) return this.#fail("connection-lost", LOST);
    this.#restarting = true;
    this.#failAfter(this.#options.timeoutMs, "connection-lost", LOST);
    pc.restartIce(); // Which asks for a new offer.
  }

  /** @param {number} ms @param {string} code @param {string} message */
  #failAfter(ms, code, message) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#fail(code, message), ms);
  }

  #channelOpened() {
    if (this.#ended || this.#opened || !this.#channel) return;
    clearTimeout(this.#timer);
    this.#advance("offer", "ice");
    this.#advance("ice", "channel");
    this.#options.onphase("channel", "done");
    this.#opened = true;
    const ms = Math.round(performance.now() - this.#startedMs);
    this.#send({ type: "connected", ms });
    this.#options.onopen(this.#channel, ms);
  }
}

/**
 * @param {number} bytes
 * @returns {string} from the browser's source of randomness; `crypto.randomUUID` is missing on plain HTTP
 */
function randomHex(bytes) {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

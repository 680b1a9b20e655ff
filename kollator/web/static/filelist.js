/** The worker's files as rows with a download each. What the worker says goes into the page as text only. */

import { formatBytes, formatDuration, splitName, visibleName } from "./format.js";

const STEP = 200; // Rows shown at first, and more at each "Show more".
const FILTER_FROM = 10; // With fewer files a filter is only in the way.
const STREAM_FROM_BYTES = 1 << 20; // A smaller file is in memory before the dialogue could be answered.

/**
 * @typedef {import("./kollator.js").KollatorClient} KollatorClient
 * @typedef {import("./files.js").FileEntry} FileEntry
 */

/** The section "Files". */
export class FileList {
  #client;
  #element;
  /** @type {FileEntry[]} */
  #files = [];
  /** @type {Map<string, FileRow>} of those that have been shown */
  #rows = new Map();
  #shown = STEP;
  #online = false;

  /** @param {KollatorClient} client @param {(id: string) => HTMLElement} element finds one of the page's */
  constructor(client, element) {
    this.#client = client;
    this.#element = element;
    element("files-refresh").addEventListener("click", () => this.refresh());
    element("files-more").addEventListener("click", () => this.#more());
    element("files-filter").addEventListener("input", () => {
      this.#shown = STEP;
      this.#render();
    });
  }

  /** Whether a channel is open: without one the rows stay, and cannot be downloaded. */
  set online(online) {
    this.#online = online;
    /** @type {HTMLButtonElement} */ (this.#element("files-refresh")).disabled = !online;
    for (const row of this.#rows.values()) row.enabled = online;
    if (online) return;
    this.#note("idle", this.#files.length ? "" : "They are listed here once the channel is open.");
  }

  /** Asks the worker for its list. */
  async refresh() {
    this.#note("loading", this.#files.length ? "" : "The worker is being asked.");
    try {
      const { files, truncated } = await this.#client.list();
      this.#update(files);
      if (files.length === 0) this.#note("ready", "The worker's folder is empty.");
      else this.#note("ready", truncated ? "The folder has more files; these are the first of them." : "");
    } catch (problem) {
      if (this.#online) this.#note("error", `The list could not be read: ${problem.message}`);
    }
  }

  /** @param {FileEntry[]} files */
  #update(files) {
    const sizes = new Map(files.map(({ name, size }) => [name, size]));
    for (const [name, row] of this.#rows) {
      if (sizes.get(name) === row.file.size) continue;
      row.close();
      this.#rows.delete(name);
    }
    this.#files = files;
    const bytes = files.reduce((sum, { size }) => sum + size, 0);
    const count = `${files.length.toLocaleString("en")} ${files.length === 1 ? "file" : "files"}`;
    this.#element("files-count").textContent = files.length ? `${count}, ${formatBytes(bytes)}` : "";
    this.#element("files-search").hidden = files.length < FILTER_FROM;
    this.#element("files-stream").hidden = files.length === 0 || !("showSaveFilePicker" in globalThis);
    this.#render();
  }

  /** @param {FileEntry} file */
  #row(file) {
    const before = this.#rows.get(file.name);
    if (before) return before;
    const row = new FileRow(file, this.#client, {
      announce: (text) => (this.#element("announcer").textContent = text),
      streams: () => /** @type {HTMLInputElement} */ (this.#element("stream-to-disk")).checked,
    });
    row.enabled = this.#online;
    this.#rows.set(file.name, row);
    return row;
  }

  #render() {
    const filter = /** @type {HTMLInputElement} */ (this.#element("files-filter")).value.trim().toLowerCase();
    const found = this.#files.filter(({ name }) => name.toLowerCase().includes(filter));
    const nodes = found.slice(0, this.#shown).map((file) => this.#row(file).node);
    const list = this.#element("file-list");
    // Only what has changed is moved: an unchanged list keeps its focus.
    if (list.children.length !== nodes.length || nodes.some((node, index) => list.children[index] !== node)) {
      list.replaceChildren(...nodes);
    }
    const hidden = found.length - nodes.length;
    this.#element("files-more").hidden = hidden <= 0;
    this.#element("files-more").textContent = `Show ${Math.min(hidden, STEP)} more of ${hidden}`;
    if (filter && this.#files.length) {
      this.#note("ready", found.length ? "" : "No file has that in its name.");
    } else if (this.#element("files").dataset.state === "ready") this.#note("ready", "");
  }

  #more() {
    const first = this.#shown;
    this.#shown += STEP;
    this.#render();
    const next = this.#element("file-list").children[first];
    /** @type {HTMLElement|null|undefined} */ (next?.querySelector("button"))?.focus();
  }

  /** @param {string} state @param {string} text */
  #note(state, text) {
    this.#element("files").dataset.state = state;
    this.#element("files-note").textContent = text;
    this.#element("files-note").hidden = text === "";
  }
}

/** One file. Its `data-state`: idle, fetching, verified, mismatch, failed or cancelled. */
class FileRow {
  #client;
  #page;
  /** @type {AbortController|null} */
  #abort = null;
  #enabled = false;
  #url = "";

  /**
   * @param {FileEntry} file
   * @param {KollatorClient} client
   * @param {{announce: (text: string) => void, streams: () => boolean}} page
   */
  constructor(file, client, page) {
    this.file = file;
    this.#client = client;
    this.#page = page;
    const { folder, file: last } = splitName(file.name);
    this.shownName = visibleName(file.name);
    this.saveName = last;
    this.button = make("button", { type: "button", className: "file-action" });
    this.button.addEventListener("click", () => (this.#abort ? this.#abort.abort() : this.#download()));
    this.bar = make("progress", { max: Math.max(1, file.size), value: 0, hidden: true });
    this.bar.setAttribute("aria-label", `Download of ${this.shownName}`);
    this.badge = make("span", { className: "badge", hidden: true });
    this.text = make("span", { className: "file-text" });
    this.hash = make("code", { className: "sha256", hidden: true });
    this.told = make("code", { className: "sha256-told", hidden: true });
    this.save = make("a", { className: "save", textContent: "Save again", hidden: true, download: last });
    const name = make("span", { className: "file-name" });
    name.append(make("span", { className: "folder", textContent: folder }));
    name.append(make("bdi", { textContent: last }));
    const line = make("p", { className: "file-status" });
    line.append(this.badge, this.text, this.save);
    this.node = make("li", { className: "file" });
    this.node.dataset.name = file.name;
    this.node.append(
      name,
      make("span", { className: "file-size", textContent: formatBytes(file.size) }),
      this.button,
      this.bar,
      line,
      this.hash,
      this.told,
    );
    this.#show("idle", "");
  }

  /** @param {boolean} enabled */
  set enabled(enabled) {
    this.#enabled = enabled;
    this.button.disabled = !enabled && !this.#abort;
  }

  /** The row is going. */
  close() {
    this.#abort?.abort();
    this.#forget();
  }

  async #download() {
    this.#forget();
    this.#abort = new AbortController();
    this.#show("fetching", "Waiting for the worker");
    try {
      const sink = await this.#sink();
      const { signal } = this.#abort;
      const onprogress = (/** @type {any} */ progress) => this.#progress(progress);
      const fetched = await this.#client.fetch(this.file.name, { signal, onprogress, ...(sink && { sink }) });
      this.#done(fetched, Boolean(sink));
    } catch (problem) {
      if (problem.name === "AbortError") this.#show("cancelled", "Cancelled");
      else this.#show("failed", problem.message || String(problem), "Failed");
    }
  }

  /** Where the reader wants the file, when that was asked for: a stream to disk. */
  async #sink() {
    if (!this.#page.streams() || this.file.size < STREAM_FROM_BYTES) return null;
    const picker = /** @type {any} */ (globalThis).showSaveFilePicker;
    const handle = await picker({ suggestedName: this.saveName });
    return handle.createWritable();
  }

  /** @param {{received: number, size: number, bytesPerSecond: number}} progress */
  #progress({ received, size, bytesPerSecond }) {
    this.bar.max = Math.max(1, size);
    this.bar.value = size === 0 ? 1 : received;
    let text = `${formatBytes(received)} of ${formatBytes(size)}`;
    if (bytesPerSecond > 0) text += ` at ${formatBytes(bytesPerSecond)}/s`;
    if (bytesPerSecond > 0 && received < size) {
      text += `, ${formatDuration((size - received) / bytesPerSecond)} left`;
    }
    this.text.textContent = text;
  }

  /** @param {import("./files.js").FetchedFile} fetched @param {boolean} onDisk */
  #done({ verified, computed, sha256, blob }, onDisk) {
    if (!verified) {
      const text = "What arrived is not what the worker read. It was discarded.";
      this.#show("mismatch", text, "SHA-256 differs");
    } else if (onDisk) this.#show("verified", "Written to disk", "SHA-256 verified");
    else this.#show("verified", "Saved", "SHA-256 verified");
    this.hash.textContent = computed;
    this.told.textContent = sha256;
    this.hash.hidden = false;
    this.told.hidden = verified;
    if (!verified || !blob) return;
    this.#url = URL.createObjectURL(blob);
    this.save.href = this.#url;
    this.save.hidden = false;
    this.save.click();
  }

  #forget() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = "";
    this.save.removeAttribute("href");
    this.save.hidden = true;
    this.hash.hidden = true;
    this.told.hidden = true;
  }

  /** @param {string} state @param {string} text @param {string} [badge] */
  #show(state, text, badge = "") {
    const fetching = state === "fetching";
    if (!fetching) this.#abort = null;
    this.node.dataset.state = state;
    this.text.textContent = text;
    this.badge.textContent = badge;
    this.badge.hidden = badge === "";
    this.bar.hidden = !fetching;
    if (fetching) this.bar.removeAttribute("value");
    this.button.textContent = fetching ? "Cancel" : "Download";
    this.button.dataset.action = fetching ? "cancel" : "download";
    this.button.setAttribute("aria-label", `${this.button.textContent} ${this.shownName}`);
    this.button.disabled = !fetching && !this.#enabled;
    const news = badge || (fetching ? "download begun" : text);
    if (state !== "idle") this.#page.announce(`${this.shownName}: ${news}`);
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Partial<HTMLElementTagNameMap[T]>} [properties]
 * @returns {HTMLElementTagNameMap[T]}
 */
function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

/** How numbers and names are shown. */

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/**
 * @param {number} bytes
 * @returns {string} with three significant digits in units of 1000
 */
export function formatBytes(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/**
 * @param {number|null} ms
 * @returns {string}
 */
export function formatMs(ms) {
  if (ms === null) return "–";
  if (ms < 1) return "< 1 ms";
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/**
 * @param {number} seconds
 * @returns {string} in the two largest units
 */
export function formatDuration(seconds) {
  const s = Math.ceil(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/**
 * A name that shows what it is: control characters and those that reverse the text (which would let `exe`
 * look like `jpg`) are replaced.
 * @param {string} name
 * @returns {string}
 */
export function visibleName(name) {
  return name.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");
}

/**
 * @param {string} name with "/" between its parts
 * @returns {{folder: string, file: string}} both as shown; `folder` ends with "/" or is empty
 */
export function splitName(name) {
  const at = name.lastIndexOf("/") + 1;
  return { folder: visibleName(name.slice(0, at)), file: visibleName(name.slice(at)) };
}

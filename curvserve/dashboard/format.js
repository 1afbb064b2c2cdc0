// Numbers as people read them.

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return Number(value.toPrecision(digits)).toLocaleString("en");
  return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
}

export const count = (value) => value.toLocaleString("en");

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  if (value > 99.9 && value < 100) return "99.9%";
  return `${value === 0 || value >= 10 ? Math.round(value * 10) / 10 : number(value, 2)}%`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");

export function ago(seconds) {
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

// Cividis: even in lightness, and the same to people with and without red-green blindness.
// Nuñez, Anderton, Renslow, "Optimizing colormaps with consideration for color vision deficiency",
// PLoS ONE 13(7), 2018. Every sixteenth colour of matplotlib's table, linear between them.

const POINTS = [
  0x00224e, 0x002e6a, 0x1a386f, 0x32436d, 0x434e6c, 0x535a6d,
  0x61656f, 0x6f7073, 0x7d7c78, 0x8c8878, 0x9b9476, 0xaba072,
  0xbcae6c, 0xcdbb63, 0xdec958, 0xf0d846, 0xfee838,
].map((rgb) => [rgb >> 16, (rgb >> 8) & 255, rgb & 255]);

// Return [red, green, blue] of a value from 0 to 1.
export function cividis(value) {
  const place = Math.min(1, Math.max(0, value)) * (POINTS.length - 1);
  const below = Math.min(POINTS.length - 2, Math.floor(place));
  const share = place - below;
  return POINTS[below].map((low, i) => Math.round(low + (POINTS[below + 1][i] - low) * share));
}

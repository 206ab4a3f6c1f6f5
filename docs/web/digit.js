// A drawing, made into what the network was trained on.
//
// The training images (UCI, Optical Recognition of Handwritten Digits) come from NIST's preprocessing: a digit
// fills a box of 20 x 32 in a bitmap of 32 x 32, its strokes are thickened or thinned, it is sheared until the
// first and the last row begin at the same column, and every block of 4 x 4 pixels becomes the count of those
// that are on, 0 to 16.

const SIDE = 32;
const BOX = { width: 20, height: 32 };
const BLOCK = 4;

/** Pixels that are on: the mean of the 597 test images is 312, from 299 (7) to 333 (8). */
const INK = 312;

/** A one is not as wide as the other digits: it is stretched, but no more than this. */
const MOST_STRETCH = 2;

/** Distance of a point to the segment from a to b. */
function distance(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax;
  const dy = by - ay;
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}

/** Strokes moved and scaled so that they fill the box, less a margin for their own thickness. */
function fitted(strokes, margin) {
  const points = strokes.flat();
  const range = (axis) => {
    const values = points.map((point) => point[axis]);
    const low = Math.min(...values);
    const high = Math.max(...values);
    return { middle: (low + high) / 2, extent: Math.max(high - low, 1e-6) };
  };
  const [x, y] = [range(0), range(1)];
  const tall = (BOX.height - 2 * margin) / y.extent;
  const wide = (BOX.width - 2 * margin) / x.extent;
  const scale = { x: Math.min(wide, MOST_STRETCH * tall), y: Math.min(tall, MOST_STRETCH * wide) };
  return strokes.map((stroke) =>
    stroke.map(([px, py]) => [SIDE / 2 + (px - x.middle) * scale.x, SIDE / 2 + (py - y.middle) * scale.y]),
  );
}

/** Distance of the centre of every pixel to the nearest stroke. */
function distances(strokes) {
  const found = new Float64Array(SIDE * SIDE).fill(Infinity);
  for (const stroke of strokes)
    for (let i = 0; i < stroke.length; i++) {
      const [a, b] = [stroke[Math.max(0, i - 1)], stroke[i]];
      for (let pixel = 0; pixel < found.length; pixel++) {
        const away = distance((pixel % SIDE) + 0.5, Math.floor(pixel / SIDE) + 0.5, a, b);
        if (away < found[pixel]) found[pixel] = away;
      }
    }
  return found;
}

/** Rows moved sideways, about the middle one, until the first and the last begin at the same column. */
function upright(bitmap) {
  const row = (y) => bitmap.slice(y * SIDE, (y + 1) * SIDE);
  const rows = [...Array(SIDE).keys()].filter((y) => row(y).includes(1));
  const [top, bottom] = [rows[0], rows[rows.length - 1]];
  const slope = bottom > top ? (row(bottom).indexOf(1) - row(top).indexOf(1)) / (bottom - top) : 0;
  const moved = new Uint8Array(bitmap.length);
  for (let y = top; y <= bottom; y++) {
    const by = Math.round(slope * (y - (top + bottom) / 2));
    for (let x = 0; x < SIDE; x++) {
      const from = x + by;
      if (from >= 0 && from < SIDE) moved[y * SIDE + x] = bitmap[y * SIDE + from];
    }
  }
  return moved;
}

/** 8 x 8 counts, 0 to 16, of strokes, each a list of [x, y] in any unit; null without a stroke. */
export function counts(strokes) {
  if (!strokes.flat().length) return null;
  // The pixels that are nearest to the strokes are on, as many as a digit has; how far the last one is away is
  // the margin that the next round has to leave.
  let margin = 2;
  let away = null;
  for (let round = 0; round < 4; round++) {
    away = distances(fitted(strokes, margin));
    margin = Math.min(away.toSorted()[INK - 1], BOX.width / 3);
  }
  const last = away.toSorted()[INK - 1];
  const bitmap = upright(Uint8Array.from(away, (value) => (value <= last ? 1 : 0)));
  const found = new Uint8Array((SIDE / BLOCK) ** 2);
  bitmap.forEach((on, pixel) => {
    const [x, y] = [pixel % SIDE, Math.floor(pixel / SIDE)];
    found[Math.floor(y / BLOCK) * (SIDE / BLOCK) + Math.floor(x / BLOCK)] += on;
  });
  return found;
}

/** The input of the network: counts 0 to 16 as -1 to 1. */
export function pixels(found) {
  return Float32Array.from(found, (count) => count / 8 - 1);
}

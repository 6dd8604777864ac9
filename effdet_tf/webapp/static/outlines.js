// Outlines of cells: polygons [x, y, x, y, ...] along the edges of pixels, in pixels of the image.

const SMOOTH = 0.6; // px of the image by which a simplified outline may leave its own

// As in the overlay files: hues far apart from one number to the next, two saturations by turns.
export function colour(number) {
  const hue = (number * 0.6180339887) % 1;
  return `hsl(${Math.round(hue * 360)} 100% ${number % 2 ? 57.8 : 70.6}%)`;
}

export function toPath(polygons) {
  const path = new Path2D();
  for (const points of polygons) {
    path.moveTo(points[0], points[1]);
    for (let k = 2; k < points.length; k += 2) path.lineTo(points[k], points[k + 1]);
    path.closePath();
  }
  return path;
}

// The corners of a closed outline that are needed to stay within SMOOTH of it (Douglas, Peucker).
export function simplify(points) {
  const count = points.length / 2;
  if (count <= 4) return points;
  const kept = new Uint8Array(count);
  const far = (from, to) => {
    const [ax, ay] = [points[2 * from], points[2 * from + 1]];
    const end = to % count;
    const [dx, dy] = [points[2 * end] - ax, points[2 * end + 1] - ay];
    const length = Math.hypot(dx, dy);
    let [index, farthest] = [-1, SMOOTH];
    for (let k = from + 1; k < to; k += 1) {
      const [x, y] = [points[2 * k] - ax, points[2 * k + 1] - ay];
      const distance = length ? Math.abs(x * dy - y * dx) / length : Math.hypot(x, y);
      if (distance > farthest) [index, farthest] = [k, distance];
    }
    return index;
  };
  const open = [[0, count]]; // from the first corner round to itself
  kept[0] = 1;
  while (open.length) {
    const [from, to] = open.pop();
    const index = far(from, to);
    if (index < 0) continue;
    kept[index] = 1;
    open.push([from, index], [index, to]);
  }
  return points.filter((_, k) => kept[k >> 1]);
}

export function bounds(polygons) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const points of polygons) {
    for (let k = 0; k < points.length; k += 2) {
      x0 = Math.min(x0, points[k]);
      x1 = Math.max(x1, points[k]);
      y0 = Math.min(y0, points[k + 1]);
      y1 = Math.max(y1, points[k + 1]);
    }
  }
  return [x0, y0, x1, y1];
}

// The large picture: image and outlines on a canvas, zoom, pan, and the cell under the pointer.

import { bounds, colour, simplify, toPath } from "./outlines.js";

const LARGEST = 40; // screen pixels for a pixel of the image
const EXACT = 4; // from this scale on outlines follow the edges of pixels exactly
const MANY = 400; // cells from which on outlines are drawn anew only when the image has come to rest
const REST = 80; // ms
const DRAG = 4; // px of the screen from which on a press is a drag

export class Viewer {
  // onCell(index, x, y): the cell under the pointer or stepped to; -1 for none; x, y in CSS px of the canvas.
  constructor(canvas, onCell) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.layer = new OffscreenCanvas(1, 1).getContext("2d"); // the outlines, as of layerView
    this.layerView = null; // none: they are not drawn yet, or other ones by now
    this.probe = new OffscreenCanvas(1, 1).getContext("2d"); // an identity transform, to ask what lies where
    this.onCell = onCell;
    this.view = { scale: 1, x: 0, y: 0 };
    this.pointers = new Map();
    this.outlines = true;
    this.clear();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }

  clear() {
    this.image = null;
    this.size = null;
    this.setCells(null, 0);
  }

  setImage(image, width, height) {
    const same = this.size && this.size[0] === width && this.size[1] === height;
    this.image = image;
    this.size = [width, height];
    if (!same) this.fit();
    this.redraw();
  }

  setCells(cells, count) {
    this.cells = cells;
    this.paths = cells ? cells.polygons.map(toPath) : [];
    this.smooth = cells ? cells.polygons.map((polygons) => toPath(polygons.map(simplify))) : [];
    this.boxes = cells ? cells.polygons.map(bounds) : [];
    this.layerView = null;
    this.colours = this.paths.map((_, k) => colour(k + 1));
    this.picked = -1;
    this.setCount(count);
  }

  setCount(count) {
    if (count !== this.count) this.layerView = null;
    this.count = count;
    if (this.picked >= count) this.pick(-1);
    this.redraw();
  }

  showOutlines(shown) {
    this.outlines = shown;
    this.redraw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const fitted = this.fitted;
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    this.layer.canvas.width = this.canvas.width;
    this.layer.canvas.height = this.canvas.height;
    this.layerView = null;
    if (fitted) this.fit();
    this.draw(); // at once: a resized canvas is empty
  }

  fit() {
    if (!this.size) return;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const scale = Math.min(width / this.size[0], height / this.size[1], LARGEST);
    this.view = { scale, x: (width - scale * this.size[0]) / 2, y: (height - scale * this.size[1]) / 2 };
    this.smallest = scale / 2;
    this.fitted = true;
    this.redraw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.size) return;
    const { view } = this;
    const scale = Math.min(Math.max(view.scale * factor, this.smallest), LARGEST);
    const by = scale / view.scale;
    this.view = { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
    this.move(0, 0);
  }

  move(dx, dy) {
    if (!this.size) return;
    const keep = 40; // px of the image that stay in sight
    const inside = (value, extent, room) => Math.min(Math.max(value, keep - extent), room - keep);
    const { scale, x, y } = this.view;
    this.view.x = inside(x + dx, scale * this.size[0], this.canvas.clientWidth);
    this.view.y = inside(y + dy, scale * this.size[1], this.canvas.clientHeight);
    this.fitted = false;
    this.moved = performance.now();
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.draw());
  }

  // The transform from pixels of the image to those of the screen.
  transform(context, { scale, x, y }) {
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
  }

  draw() {
    this.waiting = false;
    const { context, canvas, view } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.size) return;
    this.transform(context, view);
    context.imageSmoothingEnabled = view.scale < 4;
    if (this.image) context.drawImage(this.image, 0, 0, this.size[0], this.size[1]);
    if (this.outlines && this.count) this.drawOutlines();
    this.transform(context, view);
    if (this.picked >= 0) this.drawPicked();
  }

  // While an image of many cells moves, the outlines drawn before move with it.
  drawOutlines() {
    const { context, view, layerView: old } = this;
    const same = old && old.scale === view.scale && old.x === view.x && old.y === view.y;
    if (!same && (!old || this.count < MANY || performance.now() - this.moved > REST)) {
      this.drawLayer();
    } else if (!same) {
      clearTimeout(this.rest);
      this.rest = setTimeout(() => this.redraw(), REST + 20);
    }
    const by = view.scale / this.layerView.scale;
    const ratio = window.devicePixelRatio || 1;
    const shift = (now, then) => ratio * (now - then * by);
    context.setTransform(by, 0, 0, by, shift(view.x, this.layerView.x), shift(view.y, this.layerView.y));
    context.drawImage(this.layer.canvas, 0, 0);
  }

  drawLayer() {
    const { layer, view } = this;
    layer.setTransform(1, 0, 0, 1, 0, 0);
    layer.clearRect(0, 0, layer.canvas.width, layer.canvas.height);
    this.transform(layer, view);
    const [left, top] = [-view.x / view.scale, -view.y / view.scale];
    const right = left + this.canvas.clientWidth / view.scale;
    const bottom = top + this.canvas.clientHeight / view.scale;
    layer.lineWidth = (view.scale > 3 ? 2 : 1.3) / view.scale;
    layer.lineJoin = "bevel";
    const paths = view.scale < EXACT ? this.smooth : this.paths;
    for (let k = 0; k < this.count; k += 1) {
      const [x0, y0, x1, y1] = this.boxes[k];
      if (x1 < left || x0 > right || y1 < top || y0 > bottom) continue;
      layer.strokeStyle = this.colours[k];
      layer.stroke(paths[k]);
    }
    this.layerView = { ...view };
  }

  drawPicked() {
    const { context, view } = this;
    context.fillStyle = "rgba(255, 255, 255, .25)";
    context.fill(this.paths[this.picked]);
    context.strokeStyle = "#fff";
    context.lineWidth = 2.5 / view.scale;
    context.stroke(this.paths[this.picked]);
  }

  // The cell at a place of the canvas, the smallest where one lies within another; -1 for none.
  cellAt(x, y) {
    const [px, py] = [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale];
    let [found, smallest] = [-1, Infinity];
    for (let k = 0; k < this.count; k += 1) {
      const [x0, y0, x1, y1] = this.boxes[k];
      if (px < x0 || px > x1 || py < y0 || py > y1) continue;
      const extent = (x1 - x0) * (y1 - y0);
      if (extent < smallest && this.probe.isPointInPath(this.paths[k], px, py)) [found, smallest] = [k, extent];
    }
    return found;
  }

  pick(index, x = 0, y = 0) {
    if (index !== this.picked) this.redraw();
    this.picked = index;
    this.onCell(index, x, y);
  }

  // The next or the previous cell by score, brought into sight.
  step(by) {
    if (!this.count) return;
    const index = this.picked < 0 ? (by > 0 ? 0 : this.count - 1) : (this.picked + by + this.count) % this.count;
    const [x0, y0, x1, y1] = this.boxes[index];
    const place = () => [
      this.view.x + (this.view.scale * (x0 + x1)) / 2,
      this.view.y + (this.view.scale * (y0 + y1)) / 2,
    ];
    let [x, y] = place();
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (x < 0 || y < 0 || x > width || y > height) {
      this.move(width / 2 - x, height / 2 - y);
      [x, y] = place();
    }
    this.pick(index, x, y);
  }

  listen() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...place(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.travelled = this.pointers.size > 1 ? DRAG : 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const to = place(event);
      if (this.pointers.has(event.pointerId)) this.drag(event.pointerId, to);
      else this.pick(this.cellAt(...to), ...to);
    });
    const up = (event) => {
      this.pointers.delete(event.pointerId);
      canvas.classList.remove("moving");
      const to = place(event);
      if (event.type === "pointerup" && this.travelled < DRAG) this.pick(this.cellAt(...to), ...to);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.pick(-1));
    canvas.addEventListener("dblclick", (event) => this.zoom(2, ...place(event)));
  }

  // One pointer moves the image; two zoom it about the point between them as well.
  drag(pointer, to) {
    const from = this.pointers.get(pointer);
    const others = [...this.pointers].filter(([other]) => other !== pointer);
    this.pointers.set(pointer, to);
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    this.travelled += Math.hypot(dx, dy);
    if (this.travelled < DRAG) return;
    if (others.length) {
      const other = others[0][1];
      const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      this.zoom(spread(to) / spread(from), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
      this.move(dx / 2, dy / 2);
      return;
    }
    this.canvas.classList.add("moving");
    this.pick(-1);
    this.move(dx, dy);
  }
}

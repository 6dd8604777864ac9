// The web app: list of images, threshold, counts, downloads. The server is asked for images and results;
// the threshold works here alone.

import { ImageList } from "./list.js";
import { Uploader, filesOfInput, listenForDrops, wanted } from "./uploads.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const FILES = {
  table: "cells.csv",
  labels: "labels.tif",
  overlay: "overlay.png",
  coco: "coco.json",
  rois: "rois.zip",
  geojson: "geojson",
};
const [SOON, LATER] = [400, 4000]; // ms between two questions to the server, at work and idle

let start = null; // networks, limits
let images = []; // as the server lists them
let network = "";
let score = 0;
let shown = ""; // id of the image in the large view
let drawn = ""; // what of it is drawn: id and revision
let opened = null; // its outlines
let timer = 0;
const scores = new Map(); // id -> { revision, values }

const viewer = new Viewer($("canvas"), showCell);
const uploader = new Uploader(() => refresh());
const list = new ImageList($("list"), { onOpen: open, onRemove: remove, count: countOf });

// How many cells have a score of `score` or more; scores fall. They are 32-bit floats, and so is the
// threshold that `predict --score` compares them with.
function countAt(values) {
  const minimum = Math.fround(score);
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] >= minimum) low = middle + 1;
    else high = middle;
  }
  return low;
}

function countOf(image) {
  const known = scores.get(image.id);
  return image.state === "done" && known && known.revision === image.revision ? countAt(known.values) : null;
}

const cellsText = (count) => `${count.toLocaleString("en")} ${count === 1 ? "cell" : "cells"}`;

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const told = answer.headers.get("content-type") === "application/json";
    throw new Error(told ? (await answer.json()).error : `the server failed (${answer.status}); see its terminal`);
  }
  return answer.status === 204 ? null : answer.json();
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Ask for the state of all images, again and again.
async function refresh() {
  clearTimeout(timer);
  let busy = true;
  try {
    const state = await ask("api/state");
    if ($("notice").dataset.kind === "gone") tell("", "");
    images = state.images;
    network = state.network;
    await fetchScores();
    showDropped(state.dropped);
    busy = uploader.open > 0 || images.some(({ state: s }) => s === "waiting" || s === "working");
  } catch (error) {
    const gone = error instanceof TypeError; // fetch itself failed
    tell(gone ? "The server does not answer. Start `effdet_tf serve` again." : error.message, "gone");
  }
  render();
  clearTimeout(timer);
  timer = setTimeout(refresh, busy ? SOON : LATER);
}

function tell(text, kind) {
  notice(text);
  $("notice").dataset.kind = kind;
}

async function fetchScores() {
  const kept = new Set(images.map(({ id }) => id));
  for (const id of scores.keys()) if (!kept.has(id)) scores.delete(id);
  for (const { id, state, revision } of images) {
    if (state !== "done" || scores.get(id)?.revision === revision) continue;
    const values = await ask(`api/images/${id}/scores.json`).catch(() => null); // removed meanwhile
    if (values) scores.set(id, { revision, values });
  }
}

function render() {
  const refused = uploader.refused.map((one) => ({ ...one, state: "failed", refused: true }));
  const all = [...images, ...refused];
  $("main").dataset.empty = String(!all.length && !uploader.open);
  if (!all.some(({ id }) => id === shown)) shown = (images.find((i) => i.state !== "failed") ?? all[0])?.id ?? "";
  list.render(all, shown);
  renderTotals(all);
  renderNetwork();
  renderImage(all.find(({ id }) => id === shown));
}

function renderTotals(all) {
  const done = images.filter(({ state }) => state === "done");
  const failed = all.filter(({ state }) => state === "failed").length;
  const total = done.reduce((sum, image) => sum + (countOf(image) ?? 0), 0);
  const parts = [`${done.length} ${done.length === 1 ? "image" : "images"}, ${cellsText(total)}`];
  if (failed) parts.push(`${failed} failed`);
  const finished = done.length + failed;
  const open = all.length + uploader.open - finished;
  if (open) parts.unshift(`${finished} of ${finished + open} done`);
  $("totals").textContent = parts.join("; ");
  $("progress").hidden = !open;
  $("progress").value = finished / Math.max(1, finished + open);
  link($("all"), done.length ? `api/all.zip?score=${score}` : "");
}

// The score that the network was saved with; what is expected of a result is of the cells from it on.
const tunedScore = () => (start.networks.find(({ name }) => name === network) ?? start.networks[0]).score;

function renderNetwork() {
  const select = $("network");
  if (document.activeElement !== select && network) select.value = network;
  const tuned = tunedScore();
  $("tuned").textContent = `Tuned: ${Number(tuned.toFixed(3))}`;
  $("tuned").disabled = score === tuned;
}

function link(element, address) {
  if (address) element.href = address;
  else element.removeAttribute("href");
}

function renderImage(image) {
  const count = image ? countOf(image) : null;
  $("count").textContent = count === null ? "" : cellsText(count);
  for (const [id, file] of Object.entries(FILES)) {
    const boxes = id === "labels" && opened && !opened.masks;
    link($(id), count === null || boxes ? "" : `api/images/${image.id}/files/${file}?score=${score}`);
  }
  $("message").hidden = !image || image.state === "done";
  $("canvas").setAttribute("aria-label", image ? `${image.name}, ${$("count").textContent || image.state}` : "no image");
  if (!image) {
    viewer.clear();
    opened = null;
    drawn = "";
    return;
  }
  const texts = { waiting: "Waiting", working: `Looking for cells (network ${network})`, failed: image.error, done: "" };
  $("message").textContent = image.state === "failed" ? `${image.name}: ${image.error}` : texts[image.state];
  $("message").classList.toggle("error", image.state === "failed");
  if (opened && count !== null) viewer.setCount(count);
  renderDetail(image, count);
  load(image);
}

function renderDetail(image, count) {
  const parts = [image.name];
  if (opened && count !== null) {
    parts.push(`${opened.width} × ${opened.height} px`);
    if (opened.classes.length > 1) {
      const tally = opened.classes.map(() => 0);
      for (let k = 0; k < count; k += 1) tally[opened.class[k]] += 1;
      parts.push(opened.classes.map((name, k) => `${name} ${tally[k]}`).join(", "));
    }
    if (!opened.masks) parts.push("boxes only: this network has no mask head");
    if (image.expected && score === tunedScore()) parts.push(image.expected);
    if (image.unlike) parts.push(image.unlike);
    if (image.scaled) parts.push(image.scaled);
    if (image.truncated) parts.push("the network reports no more cells: weaker ones are missing");
  }
  $("detail").textContent = $("detail").title = parts.join(" · ");
}

// Bring picture and outlines of the image in the large view, when there are other ones than those drawn.
async function load(image) {
  const version = `${image.id} ${image.state === "done" ? image.revision : image.shown ? "shown" : ""}`;
  if (version === drawn) return;
  const other = drawn.split(" ")[0] !== image.id;
  drawn = version;
  opened = null;
  if (other) viewer.clear();
  else viewer.setCells(null, 0);
  try {
    const picture = image.shown ? await loadPicture(`api/images/${image.id}/preview.png`) : null;
    const cells = image.state === "done" ? await ask(`api/images/${image.id}/outlines.json`) : null;
    if (version !== drawn) return; // another image was opened meanwhile
    if (picture) viewer.setImage(picture, cells?.width ?? picture.naturalWidth, cells?.height ?? picture.naturalHeight);
    if (!cells) return;
    opened = cells;
    viewer.setCells(cells, countAt(cells.scores));
    renderImage(image);
  } catch (error) {
    if (version !== drawn || !images.some(({ id }) => id === image.id)) return; // not wanted any more
    drawn = ""; // to be tried again
    tell(`${image.name}: ${error.message}`, "load");
  }
}

async function loadPicture(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  return picture;
}

function showCell(index, x, y) {
  const tip = $("tip");
  tip.hidden = index < 0;
  if (index < 0 || !opened) {
    $("cell").textContent = "";
    return;
  }
  const parts = [`cell ${index + 1}`, `score ${opened.scores[index].toFixed(3)}`];
  if (opened.masks) parts.push(`area ${opened.area[index].toLocaleString("en")} px`);
  if (opened.classes.length > 1) parts.splice(1, 0, opened.classes[opened.class[index]]);
  tip.textContent = $("cell").textContent = parts.join(" · ");
  const stage = $("stage");
  const left = Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4);
  const top = y + 18 + tip.offsetHeight > stage.clientHeight ? y - 12 - tip.offsetHeight : y + 18;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

function showDropped({ count, names }) {
  const more = count > names.length ? `, and ${count - names.length} before` : "";
  $("dropped").hidden = !count;
  $("dropped").textContent = count
    ? `Dropped to make room, oldest first: ${names.join(", ")}${more}. For whole folders use effdet_tf predict.`
    : "";
}

function setScore(value) {
  if (!(value >= 0 && value <= 1)) return;
  score = value;
  $("slider").value = value;
  if (document.activeElement !== $("score")) $("score").value = value;
  render();
}

function open(id) {
  shown = id;
  render();
}

async function remove(id) {
  if (uploader.forget(id)) render();
  else await change(`api/images/${id}`, { method: "DELETE" });
}

async function change(path, options) {
  try {
    await ask(path, options);
  } catch (error) {
    tell(error.message, "refused");
  }
  await refresh();
}

async function add(files) {
  await ready; // a drop may come first
  const taken = wanted(files, start);
  const maximum = start.limits.images;
  tell("", "");
  if (!taken.length) tell(`No image among them (${start.suffixes.join(", ")}).`, "add");
  else if (taken.length > maximum) {
    const text = `${maximum} of ${taken.length} images are taken, as no more are kept at once. `;
    tell(`${text}For whole folders use effdet_tf predict.`, "add");
  }
  uploader.add(taken.slice(0, maximum), start.limits);
  refresh();
}

function listen() {
  for (const [button, input] of [["add-files", "files"], ["empty-files", "files"], ["add-folder", "folder"], ["empty-folder", "folder"]]) {
    $(button).addEventListener("click", () => $(input).click());
  }
  for (const id of ["files", "folder"]) {
    $(id).addEventListener("change", () => {
      add(filesOfInput($(id)));
      $(id).value = ""; // the same file can be chosen again
    });
  }
  $("slider").addEventListener("input", () => setScore(Number($("slider").value)));
  $("score").addEventListener("input", () => $("score").value !== "" && setScore(Number($("score").value)));
  $("score").addEventListener("blur", () => setScore(score));
  $("tuned").addEventListener("click", () => setScore(start.networks.find(({ name }) => name === network).score));
  $("network").addEventListener("change", chooseNetwork);
  $("clear").addEventListener("click", () => {
    uploader.forgetAll();
    change("api/images", { method: "DELETE" });
  });
  $("zoom-in").addEventListener("click", () => viewer.zoom(1.5));
  $("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.5));
  $("fit").addEventListener("click", () => viewer.fit());
  $("outlines").addEventListener("click", toggleOutlines);
  $("canvas").addEventListener("keydown", useKey);
  listenForDrops($("veil"), add);
}

function toggleOutlines() {
  const shownNow = $("outlines").getAttribute("aria-pressed") !== "true";
  $("outlines").setAttribute("aria-pressed", String(shownNow));
  viewer.showOutlines(shownNow);
}

function useKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowLeft: () => viewer.move(60, 0),
    ArrowRight: () => viewer.move(-60, 0),
    ArrowUp: () => viewer.move(0, 60),
    ArrowDown: () => viewer.move(0, -60),
    "+": () => viewer.zoom(1.3),
    "=": () => viewer.zoom(1.3),
    "-": () => viewer.zoom(1 / 1.3),
    0: () => viewer.fit(),
    n: () => viewer.step(1),
    p: () => viewer.step(-1),
    o: toggleOutlines,
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

async function chooseNetwork() {
  const tuned = (name) => start.networks.find((one) => one.name === name).score;
  const before = network;
  network = $("network").value;
  if (score === tuned(before)) setScore(tuned(network));
  await change(`api/network?${new URLSearchParams({ name: network })}`, { method: "POST" });
}

async function begin() {
  start = await ask("api/start");
  $("version").textContent = start.version;
  $("limit").textContent = `${start.limits.file_bytes / 2 ** 20} MiB and ${Math.round(start.limits.pixels / 1e6)} million pixels each`;
  for (const { name } of start.networks) $("network").add(new Option(name, name));
  $("network").disabled = start.networks.length < 2;
  network = (await ask("api/state")).network;
  score = start.networks.find(({ name }) => name === network).score;
  setScore(score);
  await refresh();
}

listen();
const ready = begin();
ready.catch((error) => tell(error.message, "gone"));

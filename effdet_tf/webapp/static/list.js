// The list of images: a thumbnail, the name, the count or what is the matter, and a way to remove it.

export class ImageList {
  // onOpen(id), onRemove(id); count(image): cells at the threshold, null when not known.
  constructor(element, { onOpen, onRemove, count }) {
    this.element = element;
    this.onOpen = onOpen;
    this.onRemove = onRemove;
    this.count = count;
    this.rows = new Map(); // id -> the row's elements; rows stay, so that the focus stays
  }

  render(images, shown) {
    const kept = new Set(images.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (!kept.has(id)) {
        row.line.remove();
        this.rows.delete(id);
      }
    }
    for (const image of images) {
      const row = this.rows.get(image.id) ?? this.makeRow(image);
      this.fill(row, image);
      row.button.setAttribute("aria-current", String(image.id === shown));
    }
  }

  makeRow({ id, name }) {
    const make = (tag, className, parent) => {
      const element = document.createElement(tag);
      element.className = className;
      parent?.append(element);
      return element;
    };
    const line = make("li", "");
    const button = make("button", "item", line);
    button.type = "button";
    button.title = name;
    const blank = make("span", "blank", button);
    const text = make("span", "text", button);
    make("bdi", "", make("span", "name", text)).textContent = name;
    const status = make("span", "status", text);
    const removal = make("button", "remove", line);
    removal.type = "button";
    removal.textContent = "×";
    removal.title = "Remove";
    removal.setAttribute("aria-label", `Remove ${name}`);
    button.addEventListener("click", () => this.onOpen(id));
    removal.addEventListener("click", () => this.onRemove(id));
    this.element.append(line);
    const row = { line, button, status, picture: blank, hasPicture: false };
    this.rows.set(id, row);
    return row;
  }

  fill(row, image) {
    if (image.shown && !row.hasPicture) {
      const picture = document.createElement("img");
      picture.alt = "";
      picture.src = `api/images/${image.id}/thumbnail.png`;
      row.picture.replaceWith(picture);
      row.picture = picture;
      row.hasPicture = true;
    }
    const failed = image.state === "failed";
    if (!row.hasPicture) {
      row.picture.textContent = failed ? "!" : "";
      row.picture.classList.toggle("failed", failed);
    }
    const count = this.count(image);
    const texts = {
      waiting: "waiting",
      working: "looking for cells …",
      failed: image.error,
      done: count === null ? "" : `${count.toLocaleString("en")} ${count === 1 ? "cell" : "cells"}`,
    };
    if (row.status.textContent !== texts[image.state]) row.status.textContent = texts[image.state];
    row.status.className = `status${failed ? " error" : ""}${image.state === "working" ? " busy" : ""}`;
  }
}

// Files that were dropped or chosen, and their way to the server.

const FULL = 429; // as many images wait as may: later there is room
const FULL_WAIT = 1500; // ms

// Files of an <input>; those of a folder keep its name before theirs.
export function filesOfInput(input) {
  return [...input.files].map((file) => ({
    file,
    name: file.webkitRelativePath || file.name,
    rooted: Boolean(file.webkitRelativePath),
  }));
}

// Files of a drop, with those in dropped folders.
async function filesOfDrop(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  // All of them before the first await: then the drop is over. What no file system holds has no entry.
  const entries = items.map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  const found = [];
  for (const entry of entries) {
    if (entry instanceof File) found.push({ file: entry, name: entry.name, rooted: false });
    else await walk(entry, entry.isDirectory, found);
  }
  return found;
}

async function walk(entry, rooted, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, name: entry.fullPath.replace(/^\//, ""), rooted });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const inside = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!inside.length) return; // it gives a part at a time
    for (const child of inside) await walk(child, rooted, found);
  }
}

// Shows `veil` while files are dragged over the web app, and gives those that are dropped to onFiles.
export function listenForDrops(veil, onFiles) {
  let depth = 0; // of the elements that a drag has entered and not left
  const files = (event) => [...event.dataTransfer.types].includes("Files");
  const enter = (by) => {
    depth = by ? Math.max(0, depth + by) : 0;
    veil.hidden = !depth;
  };
  window.addEventListener("dragenter", (event) => files(event) && enter(1));
  window.addEventListener("dragleave", (event) => files(event) && enter(-1));
  window.addEventListener("dragover", (event) => files(event) && event.preventDefault());
  window.addEventListener("drop", async (event) => {
    if (!files(event)) return;
    event.preventDefault();
    enter(0);
    onFiles(await filesOfDrop(event.dataTransfer));
  });
}

// Of a folder, the images alone, as `predict` takes them; a file that was chosen itself is always tried.
export function wanted(files, start) {
  const isImage = (name) => {
    const lower = name.toLowerCase();
    return (
      start.suffixes.some((suffix) => lower.endsWith(suffix)) &&
      !start.own_outputs.some((suffix) => lower.endsWith(suffix)) &&
      !lower.split("/").some((part) => part.startsWith("."))
    );
  };
  const taken = files.filter(({ name, rooted }) => !rooted || isImage(name));
  return taken.sort((a, b) => a.rooted - b.rooted || (a.name < b.name ? -1 : Number(a.name > b.name)));
}

export class Uploader {
  // onChange(): something was sent or refused.
  constructor(onChange) {
    this.onChange = onChange;
    this.queue = [];
    this.refused = []; // { id, name, error }
    this.total = 0;
    this.cleared = 0; // how often all was forgotten
    this.sending = false;
  }

  get open() {
    return this.queue.length + (this.sending ? 1 : 0);
  }

  add(files, limit) {
    this.limit = limit;
    this.queue.push(...files);
    this.run();
  }

  refuse(name, error) {
    this.total += 1;
    this.refused.push({ id: `refused-${this.total}`, name, error });
    this.refused = this.refused.slice(-this.limit.images);
  }

  // Forgets one that was refused; says whether it was one.
  forget(id) {
    const before = this.refused.length;
    this.refused = this.refused.filter((one) => one.id !== id);
    return this.refused.length < before;
  }

  forgetAll() {
    this.queue = [];
    this.refused = [];
    this.cleared += 1;
  }

  async run() {
    if (this.sending) return;
    while (this.queue.length) {
      const { file, name, rooted } = this.queue.shift();
      this.sending = true;
      const error = await this.send(file, name, rooted);
      this.sending = false;
      if (error) this.refuse(name, error);
      this.onChange();
    }
  }

  // Sends one file; returns why it was refused, or nothing.
  async send(file, name, rooted) {
    if (file.size > this.limit.file_bytes) {
      return `is larger than ${this.limit.file_bytes / 2 ** 20} MiB; cut it into parts first`;
    }
    const query = new URLSearchParams({ name, rooted: rooted ? "1" : "0" });
    const { cleared } = this;
    try {
      let answer;
      do {
        if (answer) await new Promise((resolve) => setTimeout(resolve, FULL_WAIT));
        if (cleared !== this.cleared) return "";
        answer = await fetch(`api/images?${query}`, {
          method: "POST",
          body: file,
          headers: { "Content-Type": "application/octet-stream" },
        });
      } while (answer.status === FULL);
      return answer.ok ? "" : (await answer.json()).error;
    } catch (error) {
      return `could not be sent (${error.message})`;
    }
  }
}

"use strict";
// A box of the legend hides and shows the outlines of its kind; a click on a picture makes it large.
const gallery = document.getElementById("gallery");
const show = (box) => gallery.classList.toggle(`no-${box.dataset.toggle}`, !box.checked);
for (const box of document.querySelectorAll("[data-toggle]")) {
  show(box);
  box.addEventListener("change", () => show(box));
}
for (const picture of document.querySelectorAll(".picture")) {
  picture.addEventListener("click", () => picture.parentElement.classList.toggle("large"));
}

"use strict";

// Hover values: the titles in the drawings, in a box beside the pointer.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove(); // or the browser would show it a second time
}
for (const kind of ["pointerover", "pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const target = event.target.closest?.("[data-tip]");
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${above > 8 ? above : event.clientY + 16}px`;
  });
}
document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });

// The gallery shows the digits that are chosen.
const filter = document.getElementById("filter");
if (filter) {
  const items = [...document.querySelectorAll(".gallery li[data-label]")];
  const more = document.getElementById("more");
  const update = () => {
    const { label, prediction } = filter.elements;
    for (const item of items) {
      const fits = (field) => !field.value || item.dataset[field.name] === field.value;
      item.hidden = !(fits(label) && fits(prediction));
    }
    const shown = items.filter((item) => !item.hidden).length;
    if (more && (label.value || prediction.value)) more.open = true;
    filter.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  filter.addEventListener("input", update);
  filter.addEventListener("reset", () => setTimeout(update)); // once the fields are empty
  filter.hidden = false;
  update();
}

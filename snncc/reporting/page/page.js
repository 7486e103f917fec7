"use strict";
// What belongs to the same part lights up together; a click on a line opens its part.
(() => {
  const byPart = new Map();
  const partsOf = (element) => (element.dataset.parts || "").split(" ").filter(Boolean);
  for (const element of document.querySelectorAll("[data-parts]")) {
    for (const part of partsOf(element)) {
      if (!byPart.has(part)) byPart.set(part, []);
      byPart.get(part).push(element);
    }
  }
  for (const path of document.querySelectorAll(".edges path")) {
    for (const part of [path.dataset.from, path.dataset.to]) {
      if (byPart.has(part)) byPart.get(part).push(path);
    }
  }
  let lit = [];
  const light = (element) => {
    for (const old of lit) old.classList.remove("lit");
    lit = element ? partsOf(element).flatMap((part) => byPart.get(part) || []) : [];
    for (const now of lit) now.classList.add("lit");
  };
  const nearest = (event) => event.target.closest && event.target.closest("[data-parts]");
  document.addEventListener("mouseover", (event) => light(nearest(event)));
  document.addEventListener("focusin", (event) => light(nearest(event)));
  const open = (id) => {
    const row = id && document.getElementById(id);
    if (row && row.tagName === "DETAILS") row.open = true;
    return row;
  };
  const follow = () => open(decodeURIComponent(location.hash.slice(1)));
  window.addEventListener("hashchange", follow);
  follow();
  document.addEventListener("click", (event) => {
    const line = event.target.closest(".code .line[data-parts]");
    if (!line || event.target.closest("a") || String(getSelection())) return;
    const piece = event.target.closest(".part[data-parts]") || line;
    const row = (byPart.get(partsOf(piece)[0]) || []).find((e) => e.classList.contains("part-row"));
    if (row && open(row.id)) row.scrollIntoView({ block: "nearest" });
  });
})();

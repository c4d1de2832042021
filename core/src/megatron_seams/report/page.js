// One tab stop for each strip; the arrow keys move inside it, and the layer pointed at is explained below.
for (const strip of document.querySelectorAll(".strip")) {
  const cells = [...strip.querySelectorAll("button")];
  const note = strip.nextElementSibling;
  const show = (cell) => {
    for (const other of cells) other.removeAttribute("aria-current");
    cell.setAttribute("aria-current", "true");
    const head = document.createElement("strong");
    head.textContent = cell.dataset.head;
    note.replaceChildren(head, cell.dataset.why);
  };
  const move = (from, to) => {
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
  cells.forEach((cell, index) => {
    cell.addEventListener("mouseenter", () => show(cell));
    cell.addEventListener("focus", () => show(cell));
    cell.addEventListener("click", () => move(cells.find((it) => it.tabIndex === 0), cell));
    cell.addEventListener("keydown", (event) => {
      const target = {
        ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: cells.length - 1,
      }[event.key];
      if (target === undefined || !cells[target]) return;
      event.preventDefault();
      move(cell, cells[target]);
    });
  });
}

// Without scripts there is no search; the browser's own finds closed details too.
const find = document.querySelector(".find");
const items = [...document.querySelectorAll("[data-find]")];
const texts = items.map((item) => {
  const told = [...item.querySelectorAll("[data-head]")].map((it) => `${it.dataset.head} ${it.dataset.why}`);
  return [item.textContent, ...told].join(" ").toLowerCase();
});
find.hidden = false;
find.querySelector("input").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  items.forEach((item, index) => { item.hidden = !words.every((word) => texts[index].includes(word)); });
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = words.length > 0 && !section.querySelector("[data-find]:not([hidden])");
  }
  const left = items.filter((item) => !item.hidden).length;
  find.querySelector("output").textContent = words.length ? `${left} of ${items.length}` : "";
});

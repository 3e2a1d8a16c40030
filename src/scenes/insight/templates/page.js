"use strict";

// The table of contents lists the sections.
for (const nav of document.querySelectorAll("nav")) {
  for (const section of document.querySelectorAll("section[id]")) {
    const link = document.createElement("a");
    link.href = `#${section.id}`;
    link.textContent = section.querySelector("h2").textContent;
    nav.append(link);
  }
}

// A click on a header sorts by that column, a second click reverses the order. Empty cells come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const more = table.dataset.limit ? table.parentElement.nextElementSibling : null;
  const limit = () => {
    const shown = more && !more.hidden ? Number(table.dataset.limit) : Infinity;
    [...body.rows].forEach((row, place) => { row.hidden = place >= shown; });
  };
  more?.addEventListener("click", () => { more.hidden = true; limit(); });
  headers.forEach((header, column) => header.addEventListener("click", () => {
    const order = header.ariaSort === "ascending" ? -1 : 1;
    const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    const numeric = [...body.rows].every(
      ({ cells }) => cells[column].classList.contains("number") || !cells[column].textContent.trim(),
    );
    const number = (text) => parseFloat(text.replace("−", "-").replaceAll(",", ""));
    rows.sort(([a], [b]) => {
      if (!a || !b) return !a - !b;
      return order * (numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true }));
    });
    body.append(...rows.map(([, row]) => row));
    headers.forEach((other) => { other.ariaSort = other !== header ? "none" : order === 1 ? "ascending" : "descending"; });
    limit();
  }));
}

// A confusion matrix with many classes: only non-zero cells are drawn, and none too small to see.
for (const canvas of document.querySelectorAll("canvas.heatmap")) {
  const names = JSON.parse(canvas.dataset.names);
  const cells = JSON.parse(canvas.dataset.cells); // [truth, prediction, count, share of the truth]
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let margin = 0; // for the names, in screen pixels
  let size = 1; // of a cell, in screen pixels
  const draw = () => {
    const [side, scale, style] = [canvas.clientWidth, devicePixelRatio, getComputedStyle(canvas)];
    canvas.width = canvas.height = side * scale;
    const ink = canvas.getContext("2d");
    ink.scale(scale, scale);
    margin = (side - 130) / names.length >= 10 ? 130 : 0;
    size = (side - margin) / names.length;
    ink.fillStyle = style.getPropertyValue("--panel");
    ink.fillRect(margin, margin, side, side);
    const least = size > 5 ? 0.3 : 0.6; // small dots need strong colours to be visible
    for (const [truth, prediction, , share] of cells) {
      const right = truth === prediction;
      const dot = Math.max(size > 5 ? size - 1 : size, right ? 2 : 3);
      ink.globalAlpha = least + (1 - least) * share ** 0.6;
      ink.fillStyle = style.getPropertyValue(right ? "--good" : "--bad");
      ink.fillRect(margin + (prediction + 0.5) * size - dot / 2, margin + (truth + 0.5) * size - dot / 2, dot, dot);
    }
    if (!margin) return;
    ink.globalAlpha = 1;
    ink.fillStyle = style.color;
    ink.font = `${Math.min(size * 0.9, 13)}px system-ui, sans-serif`;
    ink.textBaseline = "middle";
    for (const [at, name] of names.entries()) {
      let text = name;
      while (ink.measureText(text).width > margin - 8) text = `${text.replace("…", "").slice(0, -1)}…`;
      ink.textAlign = "right";
      ink.fillText(text, margin - 6, margin + (at + 0.5) * size);
      ink.save();
      ink.translate(margin + (at + 0.5) * size, margin - 6);
      ink.rotate(-Math.PI / 2);
      ink.textAlign = "left";
      ink.fillText(text, 0, 0);
      ink.restore();
    }
  };
  new ResizeObserver(draw).observe(canvas);
  dark.addEventListener("change", draw);
  canvas.addEventListener("pointermove", (event) => {
    const column = (event.offsetX - margin) / size - 0.5;
    const row = (event.offsetY - margin) / size - 0.5;
    const distance = ([truth, prediction]) => Math.hypot(truth - row, prediction - column);
    const nearest = cells.reduce((best, cell) => (distance(cell) < distance(best) ? cell : best));
    if (distance(nearest) * size > Math.max(size, 8)) return;
    const [truth, prediction, count, share] = nearest;
    canvas.nextElementSibling.textContent =
      `${names[truth]}, predicted ${names[prediction]}: ${count} (${(100 * share).toFixed(1)} %)`;
  });
}

// A click on an image enlarges it; Esc, the button or a click outside closes it.
const viewer = document.getElementById("viewer");
for (const button of document.querySelectorAll(".gallery button")) {
  button.addEventListener("click", () => {
    const [image, caption] = [viewer.querySelector("img"), viewer.querySelector("figcaption")];
    image.src = button.dataset.large || button.firstElementChild.src;
    image.alt = button.firstElementChild.alt;
    caption.innerHTML = button.nextElementSibling.innerHTML;
    viewer.showModal();
  });
}
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

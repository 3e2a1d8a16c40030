"use strict";

// The page's contents are its sections.
for (const nav of document.querySelectorAll("nav")) {
  for (const part of document.querySelectorAll("section[id]")) {
    const link = document.createElement("a");
    link.href = `#${part.id}`;
    link.textContent = part.querySelector("h2").textContent;
    nav.append(link);
  }
}

// A click on a header sorts; another one turns the order round. Numbers go by value, and empty cells come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
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
  }));
}

// A picture opens large; Esc, the button or a click beside it closes.
const viewer = document.getElementById("viewer");
for (const button of document.querySelectorAll(".gallery button")) {
  button.addEventListener("click", () => {
    const [picture, caption] = [viewer.querySelector("img"), viewer.querySelector("figcaption")];
    picture.src = button.dataset.large || button.firstElementChild.src;
    picture.alt = button.firstElementChild.alt;
    caption.innerHTML = button.nextElementSibling.innerHTML;
    viewer.showModal();
  });
}
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// A click on a column's head sorts its table by what the cells are worth; empty cells stay at the end.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const worth = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const full = rows.filter((row) => worth(row) !== "");
    const numbers = full.every((row) => !Number.isNaN(Number(worth(row))));
    full.sort((a, b) => numbers ? worth(a) - worth(b) : worth(a).localeCompare(worth(b)));
    if (down) full.reverse();
    table.tBodies[0].append(...full, ...rows.filter((row) => worth(row) === ""));
  }));
}
// Paper shows what a click would.
const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  closed.forEach((one) => one.open = true);
});
addEventListener("afterprint", () => closed.splice(0).forEach((one) => one.open = false));

// A click on a head sorts its table, downwards first; what has no value stays below.
for (const table of document.querySelectorAll("table")) {
  table.tHead.addEventListener("click", ({ target }) => {
    const head = target.closest("button")?.parentElement;
    if (!head) return;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[head.cellIndex].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const ahead = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -ahead : ahead;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  });
}

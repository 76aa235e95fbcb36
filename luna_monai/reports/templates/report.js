for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const column = header.cellIndex;
    const body = header.closest("table").tBodies[0];
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    const compare = (a, b) => {
      const [left, right] = [a.cells[column], b.cells[column]];
      return "sort" in left.dataset && "sort" in right.dataset
        ? left.dataset.sort - right.dataset.sort
        : left.textContent.localeCompare(right.textContent, "en", { numeric: true });
    };
    const rows = [...body.rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
    body.append(...rows);
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  });
}

function show(stack, slice) {
  const count = Number(stack.style.getPropertyValue("--count"));
  slice = Math.min(count - 1, Math.max(0, slice));
  stack.style.setProperty("--slice", slice);
  stack.querySelector("input").value = slice;
  const offset = (slice - stack.dataset.middle) * stack.dataset.step;
  const label = stack.dataset.labels?.split("|")[slice];
  const distance = offset ? `${offset > 0 ? "+" : "-"}${Math.abs(offset).toFixed(1)} mm` : "middle";
  stack.querySelector("output").textContent = label ? `${label}${offset ? `, ${distance}` : ""}` : distance;
}
for (const kind of ["input", "wheel"]) {
  document.addEventListener(kind, (event) => {
    const stack = event.target.closest?.(".stack");
    if (!stack) return;
    if (kind === "input") return show(stack, Number(event.target.value));
    if (!event.target.closest(".view")) return;
    const { value, max } = stack.querySelector("input");
    const slice = Number(value) + Math.sign(event.deltaY);
    if (slice < 0 || slice > max) return;  // the page scrolls
    event.preventDefault();
    show(stack, slice);
  }, { passive: false });
}

const dialog = document.getElementById("enlarged");
document.addEventListener("click", (event) => {
  const card = event.target.closest(".enlarge, .card .view")?.closest(".card");
  if (!card) return;
  const copy = card.querySelector(".stacks").cloneNode(true);
  const title = document.createElement("h3");
  title.textContent = [...card.querySelectorAll(".title :not(button)")].map((one) => one.textContent).join(": ");
  dialog.lastElementChild.replaceChildren(title, copy);
  dialog.showModal();
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

for (const section of document.querySelectorAll("section:has(.findings)")) {
  const rows = [...section.querySelectorAll(".findings tbody tr")];
  const number = (name) => Number(section.querySelector(name).value);
  const filter = () => {
    const lung = section.querySelector(".which-lung").value;
    for (const row of rows) {
      const { probability, diameter, lung: side } = row.dataset;
      row.hidden = probability < number(".min-probability") || diameter < number(".min-diameter") || (lung && side !== lung);
      const id = row.id.replace("-row", "");
      for (const one of section.querySelectorAll(`#${id}, .mark[href="#${id}"]`)) one.toggleAttribute("hidden", row.hidden);
    }
  };
  section.querySelector(".tools").addEventListener("input", filter);
  section.querySelector(".copy").addEventListener("click", async (event) => {
    const table = section.querySelector(".findings");
    const lines = [table, ...table.tBodies[0].rows].filter((row) => !row.hidden);
    const area = document.createElement("textarea");
    area.value = lines.map((row) => `${row.dataset.csv}\n`).join("");
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");  // works in a file opened from disk, too
    area.remove();
    event.target.textContent = done ? "Copied" : "Copying failed";
    setTimeout(() => { event.target.textContent = "Copy as CSV"; }, 2000);
  });
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const column = header.cellIndex;
    const body = header.closest("table").tBodies[0];
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    const number = (text) => { const value = parseFloat(text.replaceAll(",", "")); return isNaN(value) ? -Infinity : value; };
    const compare = (a, b) => {
      const [left, right] = [a, b].map((row) => row.cells[column].textContent);
      return Math.sign(number(left) - number(right)) || left.localeCompare(right, "en", { numeric: true });
    };
    const rows = [...body.rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
    body.append(...rows);
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  });
}


"use strict";
(() => {
  // Tables: a click on a head sorts by it; a second one turns the order. What has no value stays last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const keyed = [...body.rows].map((row) => {
          const cell = row.cells[column];
          const number = cell.dataset.value;
          const text = cell.textContent.trim();
          if (number === undefined) return { row, text, empty: text === "" || text === "–" };
          return { row, number: Number(number), text, empty: number === "" };
        });
        keyed.sort((a, b) => {
          if (a.empty || b.empty) return a.empty - b.empty;
          if (a.number !== undefined && b.number !== undefined) return sign * (a.number - b.number);
          return sign * a.text.localeCompare(b.text, "en", { numeric: true });
        });
        body.append(...keyed.map((entry) => entry.row));
      });
    });
  }

  const names = { image: "image", truth: "truth", found: "detections", both: "both", residual: "residual" };
  const show = (picture, view) => {
    // A picture without a residual keeps its last view.
    if (view === "residual" && picture.dataset.residual !== "true") view = "image";
    picture.dataset.view = view;
    picture.querySelector(".view").textContent = names[view];
  };
  for (const gallery of document.querySelectorAll(".gallery")) {
    const pictures = [...gallery.querySelectorAll(".picture")];
    const radios = [...gallery.querySelectorAll(".layers input")];
    const views = radios.map((radio) => radio.value);
    const all = (view) => {
      gallery.dataset.layer = view;
      pictures.forEach((picture) => show(picture, view));
    };
    radios.forEach((radio) => radio.addEventListener("change", () => all(radio.value)));
    pictures.forEach((picture) => {
      picture.addEventListener("click", () => {
        const own = views.filter((view) => view !== "residual" || picture.dataset.residual === "true");
        show(picture, own[(own.indexOf(picture.dataset.view) + 1) % own.length]);
      });
    });
    all((radios.find((radio) => radio.checked) || radios[0]).value);
  }

  const theme = document.getElementById("theme");
  const paint = (choice) => {
    if (choice) document.documentElement.dataset.theme = choice;
    else delete document.documentElement.dataset.theme;
    theme.value = choice;
  };
  theme.addEventListener("change", () => paint(theme.value));
  theme.parentElement.hidden = false;
  paint("");
})();

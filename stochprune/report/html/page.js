"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const say = (text) => { document.getElementById("announcement").textContent = text; };

  // Charts: Vega-Lite in the colours of the page, drawn when their run is first seen, and again if light turns dark.
  const theme = (width) => {
    const ink = dark.matches ? "#e8ecf1" : "#1c2128", soft = dark.matches ? "#a5b0bc" : "#59636e";
    const line = dark.matches ? "#3a4450" : "#d1d9e0";
    const category = dark.matches // Okabe and Ito, lighter on dark
      ? ["#56B4E9", "#F0905A", "#3CC79B", "#E59CC5", "#E69F00", "#C8CDD3", "#F0E442", "#8FA8FF"]
      : ["#0072B2", "#D55E00", "#009E73", "#A8477C", "#8A6100", "#6A737D", "#56B4E9", "#4B4FC4"];
    const text = { labelFontSize: 12, titleFontSize: 12, labelColor: ink, titleColor: ink, titleFontWeight: "normal" };
    return {
      background: "transparent", font: getComputedStyle(document.body).fontFamily,
      view: { stroke: null },
      padding: { left: 5, top: 5, right: 14, bottom: 5 }, // half of the last label of an axis lies beyond it
      axis: { ...text, gridColor: line, domainColor: soft, tickColor: soft, labelOverlap: "greedy", tickCount: 5 },
      axisY: { labelLimit: Math.min(230, 0.4 * width) },
      axisX: { titleAnchor: "end" }, // a title wider than the plot then grows below the labels of the other axis
      title: { color: soft, fontSize: 12, fontWeight: "normal", anchor: "start" },
      legend: { ...text, symbolStrokeWidth: 2 },
      range: { category, ramp: { scheme: dark.matches ? "darkblue" : "blues" } },
      bar: { color: category[0] }, rule: { color: soft }, point: { opacity: 1 }, text: { color: ink, fontSize: 12 },
    };
  };
  const draw = (panel) => {
    const chart = panel.querySelector(".chart");
    const spec = JSON.parse(panel.querySelector(".spec").textContent);
    const options = { actions: false, renderer: "svg", ast: true, config: theme(chart.clientWidth), tooltip: { theme: dark.matches ? "dark" : "light" } };
    chart.dataset.state = "drawing";
    window.vegaEmbed(chart, spec, options).then(
      () => { chart.dataset.state = "drawn"; },
      (error) => { chart.dataset.state = "failed"; chart.textContent = `This chart cannot be drawn: ${error.message}`; },
    );
  };
  const drawAll = (section) => section.querySelectorAll(".panel").forEach((panel) => {
    if (!panel.querySelector(".chart").dataset.state) draw(panel);
  });
  dark.addEventListener("change", () => {
    document.querySelectorAll(".chart").forEach((chart) => { delete chart.dataset.state; });
    document.querySelectorAll(".run:not([hidden])").forEach(drawAll);
  });

  // Tabs: arrow keys, Home and End move between them, as ARIA's pattern of tabs asks.
  const tabs = [...document.querySelectorAll('[role="tab"]')], runs = [...document.querySelectorAll(".run")];
  const select = (index, focus) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    runs.forEach((run, i) => { run.hidden = i !== index; });
    if (focus) { tabs[index].focus(); }
    drawAll(runs[index]);
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index, false));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const next = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index ? index - 1 : last, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      select(next, true);
    });
  });

  // Tables: a header sorts, numbers by value and texts by language; missing values stay last.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.classList.contains("missing")) return null;
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  document.querySelectorAll(".sort").forEach((button) => button.addEventListener("click", () => {
    const header = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const descending = header.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keyed = [...body.rows].map((row) => [keyOf(row, header.cellIndex), row]);
    keyed.sort(([a], [b]) => (a === null ? 1 : 0) - (b === null ? 1 : 0) || (descending ? compare(b, a) : compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
    say(`Sorted by ${button.textContent}, ${descending ? "descending" : "ascending"}`);
  }));

  if (tabs.length) select(0, false); else runs.forEach(drawAll);
})();

"use strict";
(() => {
  const hints = JSON.parse(document.getElementById("hints").textContent);
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const color = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* Charts: drawn when they come near, in the colours of the page. */
  const theme = () => {
    const patch = {
      "font.color": color("--text"),
      "hoverlabel.bgcolor": color("--panel"),
      "hoverlabel.bordercolor": color("--muted"),
      "hoverlabel.font.color": color("--text"),
      "legend.font.color": color("--text"),
    };
    for (const axis of ["xaxis", "yaxis"]) {
      patch[`${axis}.gridcolor`] = color("--grid");
      patch[`${axis}.linecolor`] = color("--line");
      patch[`${axis}.tickfont.color`] = color("--muted");
    }
    return patch;
  };
  // Lines run behind the texts in a chart, not through them.
  const themeTexts = (layout) =>
    (layout.annotations || []).map((text) => ({ ...text, bgcolor: color("--page"), borderpad: 1 }));
  const set = (object, path, value) => {
    const names = path.split(".");
    const last = names.pop();
    for (const name of names) object = object[name] = object[name] || {};
    object[last] = value;
  };

  const highlight = (chart, trial) => {
    const x = [], y = [];
    for (const trace of chart._fullData) {
      const ids = trace.customdata;
      if (!ids || trace.name === "pointed at") continue;
      for (let i = 0; i < ids.length; i++) {
        if (ids[i] === trial) { x.push(trace.x[i]); y.push(trace.y[i]); }
      }
    }
    const place = chart.data.findIndex((trace) => trace.name === "pointed at");
    Plotly.restyle(chart, { x: [x], y: [y] }, [place]);
  };

  const draw = (figure) => {
    const chart = figure.querySelector(".chart");
    const choice = figure.querySelector(".view-choice");
    const views = JSON.parse(figure.querySelector(".views").textContent);
    const hint = figure.querySelector(".hint");
    const close = figure.querySelector(".close-choice");
    const show = () => {
      const view = views[choice ? Number(choice.value) : 0];
      const layout = structuredClone(view.figure.layout);
      for (const [path, value] of Object.entries(theme())) set(layout, path, value);
      if (close && close.checked && view.close) {
        set(layout, "xaxis.range", view.close[0]);
        set(layout, "yaxis.range", view.close[1]);
      }
      layout.annotations = themeTexts(layout);
      // A finger that scrolls the page must not zoom a chart.
      layout.dragmode = touch ? false : "zoom";
      const data = [...view.figure.data];
      const lines = data.some((trace) => trace.customdata && trace.mode === "lines");
      if (lines) {
        data.push({
          x: [], y: [], mode: "lines", name: "pointed at", showlegend: false, hoverinfo: "skip",
          line: { color: color("--text"), width: 2.5 },
        });
      }
      // Plotly takes a tap for two clicks, which would undo the ranges.
      const doubleClick = touch ? false : "reset";
      const options = { responsive: true, displayModeBar: false, doubleClick };
      return Plotly.react(chart, data, layout, options);
    };
    show().then(() => {
      const tell = (event) => {
        const trial = event.points[0].customdata;
        if (trial === undefined || !(trial in hints)) return;
        hint.hidden = false;
        hint.textContent = hints[trial];
        if (chart.data.some((trace) => trace.name === "pointed at")) highlight(chart, trial);
      };
      chart.on("plotly_hover", tell);
      // A tap is a click alone.
      chart.on("plotly_click", tell);
      chart.dataset.drawn = "yes";
    });
    if (close) close.addEventListener("change", show);
    if (choice) {
      choice.addEventListener("change", () => {
        show();
        hint.hidden = true;
        const chosen = Number(choice.value);
        figure.querySelectorAll(".view").forEach((view, i) => { view.hidden = i !== chosen; });
        figure.querySelectorAll(".view-data").forEach((part) => {
          part.hidden = Number(part.dataset.view) !== chosen;
        });
      });
    }
  };

  const figures = [...document.querySelectorAll(".chart-figure")];
  const waiting = new Set(figures);
  const drawOnce = (figure) => { if (waiting.delete(figure)) draw(figure); };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { near.unobserve(entry.target); drawOnce(entry.target); }
    }
  }, { rootMargin: "600px" });
  figures.forEach((figure) => near.observe(figure));
  window.addEventListener("beforeprint", () => figures.forEach(drawOnce));
  document.querySelectorAll(".choice, .filters").forEach((part) => { part.hidden = false; });
  dark.addEventListener("change", () => {
    for (const chart of document.querySelectorAll(".chart[data-drawn]")) {
      Plotly.relayout(chart, { ...theme(), annotations: themeTexts(chart.layout) });
      const place = chart.data.findIndex((trace) => trace.name === "pointed at");
      if (place >= 0) Plotly.restyle(chart, { "line.color": color("--text") }, [place]);
    }
  });

  /* Tables: sorted by their headers, filtered by words and by one column. */
  const orderOf = (row, column) => {
    const cell = row.cells[column];
    return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent;
  };
  const compare = (a, b) => {
    const missing = (value) => value === "-" || value === "";
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.interactive")) {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      header.replaceChildren(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((other) => other.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [orderOf(row, column), row]);
        const empty = (value) => value === "-" || value === "";
        rows.sort(([a], [b]) =>
          empty(a) || empty(b) ? compare(a, b) : (down ? -1 : 1) * compare(a, b));
        body.append(...rows.map(([, row]) => row));
      });
    });
    const filters = table.closest(".table").querySelector(".filters");
    if (!filters) continue;
    const words = filters.querySelector("input");
    const state = filters.querySelector("select");
    const count = filters.querySelector(".count");
    const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of texts) {
        const fits = asked.every((word) => text.includes(word)) && (!state || !state.value ||
          row.cells[Number(state.dataset.column)].textContent === state.value);
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${texts.size} rows`;
    };
    words.addEventListener("input", filter);
    if (state) state.addEventListener("change", filter);
    filter();
  }
})();

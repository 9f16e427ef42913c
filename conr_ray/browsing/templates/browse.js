"use strict";
// Without this script all but the map and the search work: it saves reloading, and tells what was done.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function shown(html, url) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const said = page.getElementById("said");
  const [text, wrong] = said ? [said.textContent, said.className] : ["", ""];
  if (said) said.textContent = "";
  document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
  document.title = page.title;
  if (url) history.replaceState(null, "", url);
  // Readers tell what changes in a region that is there already.
  const live = document.getElementById("said");
  live.className = wrong;
  setTimeout(() => { live.textContent = text; }, 50);
  live.focus({ preventScroll: false });
  begin();
}

async function sent(form, button) {
  const fields = new URLSearchParams(new FormData(form));
  if (button && button.name) fields.append(button.name, button.value);
  try {
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body: fields });
    shown(await answer.text(), answer.url);
  } catch (error) {
    failed();
  }
}

function failed() {
  const live = document.getElementById("said");
  live.className = "error";
  live.textContent = "The browser on this machine does not answer: is its command still running?";
}

function begin() {
  for (const form of all("form[action='/edit']")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sent(form, event.submitter);
    });
  }
  for (const button of all("button.all")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const boxes = all("input[name=row]:not(.keep)", button.form);
      const on = !boxes.every((box) => box.checked);
      for (const box of boxes) box.checked = on;
      document.getElementById("said").textContent = on ? `${boxes.length} images are chosen` : "no image is chosen";
    });
  }
  // With Shift, all from the last box to this one.
  let last = null;
  for (const box of all("input[name=row]")) {
    box.addEventListener("click", (event) => {
      const boxes = all("input[name=row]", box.form);
      if (event.shiftKey && last && boxes.includes(last)) {
        const [from, to] = [boxes.indexOf(last), boxes.indexOf(box)].sort((a, b) => a - b);
        for (const one of boxes.slice(from, to + 1)) one.checked = box.checked;
      }
      last = box;
    });
  }
  const search = document.getElementById("search");
  if (search) {
    search.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const file = document.getElementById("file").files[0];
        const answer = await fetch("/search", { method: "POST", body: file });
        shown(await answer.text());
      } catch (error) {
        failed();
      }
    });
  }
  if (document.getElementById("map")) map();
}

async function map() {
  const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
  const said = document.getElementById("said");
  const points = await (await fetch("/points")).json();
  const [wide, high, margin] = [canvas.width, canvas.height, 20];
  const spread = (values, length) => {
    const low = Math.min(...values), range = Math.max(...values) - low || 1;
    return values.map((value) => margin + ((value - low) / range) * (length - 2 * margin));
  };
  const x = spread(points.x, wide), y = spread(points.y, high);
  let path = [], cross = [wide / 2, high / 2], keyboard = false;

  function draw() {
    const style = getComputedStyle(document.body);
    pen.clearRect(0, 0, wide, high);
    points.row.forEach((_, i) => {
      // The golden angle keeps hues of neighbouring numbers apart.
      pen.fillStyle = `hsl(${(points.cluster[i] * 137.5) % 360} 60% 50%)`;
      pen.beginPath();
      pen.arc(x[i], y[i], 3, 0, 7);
      pen.fill();
    });
    pen.strokeStyle = style.color;
    pen.lineWidth = 2;
    pen.beginPath();
    path.forEach(([a, b], i) => (i ? pen.lineTo(a, b) : pen.moveTo(a, b)));
    if (keyboard && path.length) pen.lineTo(...cross);
    pen.stroke();
    if (keyboard) {
      pen.beginPath();
      pen.moveTo(cross[0] - 9, cross[1]); pen.lineTo(cross[0] + 9, cross[1]);
      pen.moveTo(cross[0], cross[1] - 9); pen.lineTo(cross[0], cross[1] + 9);
      pen.stroke();
    }
  }

  const inside = (a, b) => {
    let found = false;
    for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
      const [[c, d], [e, f]] = [path[i], path[j]];
      if (d > b !== f > b && a < ((e - c) * (b - d)) / (f - d) + c) found = !found;
    }
    return found;
  };

  async function close() {
    const rows = path.length < 3 ? [] : points.row.filter((_, i) => inside(x[i], y[i]));
    path = [];
    draw();
    said.className = "";
    said.textContent = `${rows.length} images are inside`;
    const answer = await fetch("/chosen", { method: "POST", body: new URLSearchParams(rows.map((row) => ["row", row])) });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.getElementById("chosen").replaceChildren(...page.body.children);
    canvas.dataset.chosen = rows.length;
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * wide, ((event.clientY - box.top) / box.height) * high];
  };
  canvas.addEventListener("pointerdown", (event) => {
    keyboard = false;
    path = [place(event)];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (keyboard || !path.length || !event.buttons) return;
    path.push(place(event));
    draw();
  });
  canvas.addEventListener("pointerup", () => { if (!keyboard) close(); });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key], size = event.shiftKey ? 75 : 15;
    if (step) {
      const bound = (value, length) => Math.min(length, Math.max(0, value));
      cross = [bound(cross[0] + size * step[0], wide), bound(cross[1] + size * step[1], high)];
    } else if (event.key === " ") {
      path.push([...cross]);
      said.textContent = `corner ${path.length} is set`;
    } else if (event.key === "Escape") {
      path = [];
      said.textContent = "begun anew";
    } else if (event.key === "Enter") {
      close();
    } else {
      return;
    }
    event.preventDefault();
    keyboard = true;
    draw();
  });
  draw();
  canvas.dataset.drawn = points.row.length;
}

begin();

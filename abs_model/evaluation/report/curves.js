// The curves: for each norm a panel, with a ruler that follows the pointer or the arrow keys.

const PANEL = { width: 380, height: 270, left: 40, right: 10, top: 8, bottom: 42 };
const shownModels = content.models.map(() => true);
const panels = [];

function drawCurves() {
  byId("curves-explanation").textContent =
    `Solid: all attacks together, ${plural(content.num_images, "test image")}. Dashed: as `
    + "published. Dotted: the threshold. A curve ends where the search did. Move over a panel, or focus it and use the arrow keys, to "
    + "read the accuracies at a distance; a model's name shows or hides it.";
  content.norms.forEach((_, norm) => {
    const panel = new CurvePanel(norm);
    panels.push(panel);
    byId("panels").append(panel.root);
    panel.rest();
  });
}

/* Whether a distance is beyond another; as the tables count, with room for float32 rounding. */
function isBeyond(value, at) {
  const [relative, absolute] = content.rounding;
  return value === null || value > at * (1 + relative) + absolute;
}

/* The accuracy that is left at a distance; null beyond what was searched. */
function accuracyAt({ distances, limit }, at) {
  if (!distances.length || (limit !== null && isBeyond(at, limit))) return null;
  return distances.filter((each) => isBeyond(each, at)).length / distances.length;
}

/* The published accuracy at a distance, between its points; null beyond them. */
function publishedAt(curve, at) {
  if (!curve) return null;
  const { distances, accuracies } = curve, last = distances.length - 1;
  if (at < distances[0] || at > distances[last]) return null;
  const right = distances.findIndex((each) => each >= at);
  if (right === 0) return accuracies[0];
  const [from, to] = [distances[right - 1], distances[right]];
  const share = to > from ? (at - from) / (to - from) : 1;
  return accuracies[right - 1] + share * (accuracies[right] - accuracies[right - 1]);
}

class CurvePanel {
  constructor(norm) {
    this.norm = norm;
    this.curves = content.curves[norm];
    this.threshold = content.norms[norm].threshold;
    this.whole = content.norms[norm].key === "l0";
    this.end = this.findEnd();
    this.lines = this.curves.map((curve, model) => this.drawModel(curve, model));
    this.ruler = svg("line", { class: "ruler", y1: PANEL.top, y2: PANEL.height - PANEL.bottom });
    this.dots = content.models.map((model) => svg("circle", { r: 3.2, fill: model.color,
      class: "dot" }));
    const name = content.norms[norm].name;
    this.picture = svg("svg", { viewBox: `0 0 ${PANEL.width} ${PANEL.height}`, class: "curve",
      tabindex: 0, role: "slider", "aria-label": `Distance at which to read the ${name} curves`,
      "aria-valuemin": 0, "aria-valuemax": this.end,
      pointermove: (event) => this.point(event), pointerdown: (event) => this.point(event),
      pointerleave: () => this.rest(), keydown: (event) => this.key(event) },
      svg("rect", { class: "area", x: PANEL.left, y: PANEL.top,
        width: PANEL.width - PANEL.left - PANEL.right,
        height: PANEL.height - PANEL.top - PANEL.bottom }),
      this.drawAxes(), this.lines, this.ruler, this.dots);
    this.head = element("th", { scope: "col" });
    this.rows = content.models.map((model, position) => this.drawRow(model, position));
    const reading = element("table", { class: "reading" },
      element("thead", {}, element("tr", {}, this.head, element("th", { scope: "col" }, "here"),
        element("th", { scope: "col" }, "published"))),
      element("tbody", {}, this.rows.map((row) => row.root)));
    this.root = element("figure", { class: "panel" },
      element("figcaption", {}, normName(norm), ` distance${this.whole ? ", pixels" : ""}`),
      this.picture, reading);
  }

  /* Where the axis ends: beyond nearly all images, all published points and the threshold. */
  findEnd() {
    const ends = this.curves.flatMap((curve) => {
      const finite = curve.distances.filter((each) => each !== null);
      const own = finite.length ? finite[Math.floor(0.98 * (finite.length - 1))] : 0;
      return [own, curve.published ? curve.published.distances.at(-1) : 0];
    });
    return 1.02 * Math.max(1.25 * this.threshold, ...ends);
  }

  x(value) {
    const width = PANEL.width - PANEL.left - PANEL.right;
    return PANEL.left + width * Math.min(value / this.end, 1);
  }

  y(value) {
    return PANEL.top + (PANEL.height - PANEL.top - PANEL.bottom) * (1 - value);
  }

  drawAxes() {
    const bottom = this.y(0), right = this.x(this.end);
    const levels = [0, 0.2, 0.4, 0.6, 0.8, 1].map((level) => [
      svg("line", { class: "grid", x1: PANEL.left, x2: right, y1: this.y(level),
        y2: this.y(level) }),
      svg("text", { class: "mark", x: PANEL.left - 6, y: this.y(level) + 3.5,
        "text-anchor": "end" }, percent(level)),
    ]);
    const marks = ticks(this.end).map((value) => svg("text", { class: "mark", x: this.x(value),
      y: bottom + 15, "text-anchor": "middle" }, general(value, 3)));
    const place = this.x(this.threshold);
    return [levels, marks,
      svg("line", { class: "threshold", x1: place, x2: place, y1: PANEL.top, y2: bottom }),
      svg("text", { class: "mark", x: place, y: bottom + 34, "text-anchor": "middle" },
        `threshold ${general(this.threshold, 6)}`)].flat(2);
  }

  drawModel(curve, model) {
    const { color } = content.models[model], parts = [];
    if (curve.published) {
      const { distances, accuracies } = curve.published;
      const points = distances.map((each, number) =>
        `${this.x(each).toFixed(1)},${this.y(accuracies[number]).toFixed(1)}`);
      parts.push(svg("polyline",
        { class: "published-curve", points: points.join(" "), stroke: color }));
    }
    if (curve.distances.length) parts.push(svg("path", { d: this.steps(curve), stroke: color }));
    return svg("g", { class: "model" }, parts);
  }

  steps({ distances, limit }) {
    let left = distances.length, path = `M${PANEL.left},${this.y(1).toFixed(1)}`;
    for (const each of distances) {
      if (each === null || each > this.end) break;
      left -= 1;
      path += `H${this.x(each).toFixed(1)}V${this.y(left / distances.length).toFixed(1)}`;
    }
    // What is left is shown as far as was searched; where nothing is, the curve has ended.
    return left ? `${path}H${this.x(limit === null ? this.end : limit)}` : path;
  }

  drawRow(model, position) {
    const own = element("td"), paper = element("td");
    const toggle = element("button", { type: "button", "aria-pressed": "true",
      title: "Show or hide", click: () => toggleModel(position) }, swatch(model), model.name);
    const root = element("tr", {}, element("th", { scope: "row" }, toggle), own, paper);
    return { root, own, paper, toggle };
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const place = (event.clientX - box.left) * (PANEL.width / box.width);
    this.read((place - PANEL.left) / (PANEL.width - PANEL.left - PANEL.right) * this.end);
  }

  key(event) {
    const step = this.whole ? 1 : this.end / 100;
    const places = { ArrowLeft: this.at - step, ArrowDown: this.at - step,
      ArrowRight: this.at + step, ArrowUp: this.at + step, PageUp: this.at + 10 * step,
      PageDown: this.at - 10 * step, Home: 0, End: this.end };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.read(places[event.key]);
  }

  rest() {
    this.read(this.threshold, true);
  }

  /* Puts the ruler at a distance; at rest it is hidden, and the table is read at the threshold. */
  read(value, resting = false) {
    const inside = Math.min(Math.max(value, 0), this.end);
    this.at = this.whole ? Math.round(inside) : inside;
    const x = this.x(this.at), unit = unitOf(this.norm);
    this.ruler.setAttribute("x1", x);
    this.ruler.setAttribute("x2", x);
    this.picture.classList.toggle("resting", resting);
    const where = `${resting ? general(this.at, 6) : distance(this.at, this.norm)}${unit}`;
    this.head.textContent = resting ? `at ${where}, the threshold` : `at ${where}`;
    this.curves.forEach((curve, model) => {
      const own = accuracyAt(curve, this.at);
      this.rows[model].own.textContent = percent(own);
      this.rows[model].paper.textContent = percent(publishedAt(curve.published, this.at));
      this.dots[model].setAttribute("cx", x);
      this.dots[model].setAttribute("cy", this.y(own ?? 0));
      this.dots[model].classList.toggle("hidden", own === null || !shownModels[model]);
    });
    this.picture.setAttribute("aria-valuenow", this.at);
    this.picture.setAttribute("aria-valuetext", [where, ...content.models.map((model, number) =>
      `${model.name} ${this.rows[number].own.textContent}`)].join(", "));
  }

  refresh() {
    shownModels.forEach((shown, model) => {
      this.lines[model].classList.toggle("hidden", !shown);
      this.rows[model].root.classList.toggle("faint", !shown);
      this.rows[model].toggle.setAttribute("aria-pressed", String(shown));
    });
    this.rest();
  }
}

function toggleModel(model) {
  shownModels[model] = !shownModels[model];
  panels.forEach((panel) => panel.refresh());
}

/* Round numbers from 0 to the end, about five of them. */
function ticks(end) {
  const size = 10 ** Math.floor(Math.log10(end / 4));
  const step = size * [1, 2, 2.5, 5, 10].find((each) => end / (each * size) <= 6);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, number) => number * step);
}

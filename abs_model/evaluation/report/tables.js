// The tables: the overview of all models, and a table for each norm.

/* [low, high] in small print. */
function interval(values, write) {
  if (values.length < 3) return null;
  return element("small", {}, `[${write(values[1])}, ${write(values[2])}]`);
}

function withoutSign(value) {
  return value === null ? NONE : (100 * value).toFixed(0);
}

/* Writes a cell's distances; what is beyond the limit of the search, as that. */
function writer(norm, cell) {
  const limit = cell?.limit ?? null;
  return (value) => (cell?.published ? publishedDistance(value, norm)
    : distance(value, norm, { limit }));
}

/* In the place of an accuracy at the threshold. */
function triedTo(norm, cell) {
  return `tried to ${general(cell.limit, 6)}${unitOf(norm)} only`;
}

/* The minimum over all attacks, and what was published; null without. */
function lastRow(norm, published) {
  const { rows } = content.blocks[norm];
  const isIt = (row) => row.attack === null && !row.certified && isPublished(row) === published;
  return rows.filter(isIt).pop() ?? null;
}

function isPublished(row) {
  return row.cells.some((cell) => cell !== null && cell.published);
}

function drawOverview() {
  if (content.warnings.length) {
    byId("warnings").append(
      element("h3", {}, "Warnings (!): what looks like robustness may be an attack that failed"),
      element("ul", {}, content.warnings.map((line) => element("li", {}, line))));
  }
  const norms = content.norms.map((_, norm) => norm);
  const head = [
    element("tr", {},
      element("th", { rowspan: 2, scope: "col", class: "name" }, "Model"),
      element("th", { rowspan: 2, scope: "col" }, "Clean", element("br"), "accuracy"),
      norms.map((norm) => element("th", { colspan: 2, scope: "colgroup", class: "first" },
        grouped(normName(norm))))),
    element("tr", {}, norms.map((norm) => [
      element("th", { scope: "col", class: "first" }, "median"),
      element("th", { scope: "col" }, `accuracy ${atThreshold(norm)}`),
    ])),
  ];
  const rows = content.models.map((model, position) => element("tr", {},
    element("th", { scope: "row", class: "name" }, swatch(model), breakable(model.name)),
    element("td", {}, element("b", {}, percent(model.clean, 2))),
    norms.map((norm) => overviewCells(norm, position))));
  byId("explanation").textContent = content.explanation;
  byId("overview-table").append(element("table", { class: "overview" },
    element("thead", {}, head), element("tbody", {}, rows)));
}

function overviewCells(norm, model) {
  const cell = lastRow(norm, false)?.cells[model] ?? null;
  const paper = lastRow(norm, true)?.cells[model] ?? null;
  const write = writer(norm, cell);
  const published = (text) => element("small", { class: "published" }, "paper ", text);
  return [
    element("td", { class: "first" },
      cell?.median ? [element("b", {}, write(cell.median[0])), interval(cell.median, write)] : NONE,
      paper && published(publishedDistance(paper.median[0], norm))),
    element("td", {},
      !cell ? NONE : cell.reached
        ? [element("b", {}, percent(cell.accuracy[0])), interval(cell.accuracy, withoutSign)]
        : element("small", {}, triedTo(norm, cell)),
      paper && published(percent(paper.accuracy[0])),
      cell?.reached
        ? bar(cell.accuracy[0], paper && paper.accuracy[0], content.models[model].color) : null),
  ];
}

/* How many of the closest adversarial images there are in 8 bits; nothing where it's unknown. */
function drawEightBit() {
  const cells = content.norms.map((_, norm) => lastRow(norm, false)?.cells ?? []);
  if (!cells.flat().some((cell) => cell?.eight_bit)) return;
  const head = element("tr", {}, element("th", { scope: "col", class: "name" }, "In 8 bits"),
    content.norms.map((_, norm) => element("th", { scope: "col", class: "first" },
      grouped(normName(norm)), element("small", {}, "rounded / nudged"))));
  const rows = content.models.map((model, position) => element("tr", {},
    element("th", { scope: "row", class: "name" }, swatch(model), breakable(model.name)),
    cells.map((row) => element("td", { class: "first" }, eightBit(row[position]) ?? NONE))));
  byId("overview-table").append(element("table", { class: "overview eight-bit" },
    element("thead", {}, head), element("tbody", {}, rows)));
}

function eightBit(cell) {
  return cell?.eight_bit ? cell.eight_bit.map((share) => percent(share)).join(" / ") : null;
}

/* A heading over several columns. */
function grouped(name) {
  return element("span", { class: "grouped" }, name);
}

/* An accuracy as a bar, with a tick where the published one is. */
function bar(value, mark, color) {
  return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none",
    "aria-hidden": "true" },
    svg("rect", { width: 100, height: 6, class: "bar-all" }),
    svg("rect", { width: 100 * value, height: 6, fill: color }),
    mark === null ? null : svg("rect", { x: Math.min(100 * mark, 98.5), width: 1.5, height: 6,
      class: "bar-mark" }));
}

function swatch(model) {
  return svg("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" },
    svg("rect", { width: 10, height: 10, rx: 2, fill: model.color }));
}

function drawNormTables() {
  for (const block of content.blocks) {
    const title = `${block.norm}-table`;
    byId("norm-tables").append(
      element("h3", { id: `norm-${content.norms[block.norm].key}` }, normName(block.norm),
        ": median distance, and accuracy ", atThreshold(block.norm)),
      element("div", { class: "scroll", tabindex: 0, role: "region",
        "aria-label": `Table of ${content.norms[block.norm].name}` }, normTable(block, title)),
      notTaken(block), refusedClaims(block) ?? "");
  }
  byId("all-intervals").addEventListener("change", (event) => {
    byId("norm-tables").classList.toggle("with-intervals", event.target.checked);
  });
}

function normTable(block, id) {
  const threshold = atThreshold(block.norm);
  const strongest = content.models.map((_, model) => strongestRow(block, model));
  const head = [
    element("tr", {},
      element("th", { rowspan: 2, scope: "col", class: "name" }, "Attack"),
      content.models.map((model) =>
        element("th", { colspan: 2, scope: "colgroup", class: "first" },
          grouped(breakable(model.name))))),
    element("tr", {}, content.models.map(() => [
      element("th", { scope: "col", class: "first" }, "median"),
      element("th", { scope: "col" }, threshold),
    ])),
  ];
  const rows = block.rows.map((row) => {
    const kind = row.attack !== null ? "attack" : isPublished(row) ? "paper"
      : row.certified ? "certified" : "minimum";
    return element("tr", { class: kind },
      element("th", { scope: "row", class: "name" }, row.title,
        row.budget ? element("small", {}, row.budget) : null),
      row.cells.map((cell, model) =>
        normCells(block.norm, row, cell, model, strongest[model] === row)));
  });
  return element("table", { class: "norm", id }, element("thead", {}, head),
    element("tbody", {}, rows));
}

/* The attack that leaves a model the least accuracy at the threshold, then the smallest median. */
function strongestRow(block, model) {
  const key = (row) => [row.cells[model].accuracy[0], row.cells[model].median?.[0] ?? Infinity];
  const rows = block.rows.filter((row) => row.attack !== null && row.cells[model]?.reached);
  const sorted = rows.sort((a, b) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1]);
  return rows.length > 1 ? sorted[0] : null;
}

function normCells(norm, row, cell, model, strongest) {
  if (cell === null) {
    const why = row.attack === null ? null : content.attacks[row.attack].refusals[model];
    const { name } = content.models[model];
    const tip = why ? [`${row.title} was not tried on ${name}: ${why}`] : null;
    return [element("td", { class: "first none", colspan: 2, ...tipped(tip) }, NONE)];
  }
  const write = writer(norm, cell);
  const median = cell.median ? [write(cell.median[0]), interval(cell.median, write)] : NONE;
  const accuracy = [...accuracyLines(norm, row, cell),
    cell.num_images < cell.num_expected
      ? element("small", { class: "partial" }, `${cell.num_images} of ${cell.num_expected}`)
      : null];
  const shade = strongest ? " strongest" : "";
  if (cell.published) {
    return [element("td", { class: "first" }, median), element("td", {}, accuracy)];
  }
  const tip = tipped(cellTip(norm, row, cell, model));
  // The gallery has no minimum but that over all attacks.
  const shown = row.attack !== null || row === lastRow(norm, false);
  const link = (inner, focusable) => shown
    ? element("a", { href: imagesHash({ norm, model, attack: row.attack }),
      tabindex: focusable ? null : -1 }, inner)
    : inner;
  return [element("td", { class: `first${shade}`, ...tip }, link(median, true)),
    element("td", { class: shade.trim(), ...tip }, link(accuracy, false))];
}

/* An accuracy with its interval; one that is not at the threshold says at what it is. */
function accuracyLines(norm, row, cell) {
  if (!cell.reached && row.attack === null) {
    return [element("small", { class: "partial" }, triedTo(norm, cell))];
  }
  return [percent(cell.accuracy[0]), cell.warnings?.length ? " (!)" : null,
    interval(cell.accuracy, withoutSign), cell.reached ? null
      : element("small", { class: "partial" }, `at ${general(cell.limit, 6)}${unitOf(norm)}`)];
}

function cellTip(norm, row, cell, model) {
  const write = writer(norm, cell);
  const lines = [
    `${row.title}, ${content.norms[norm].name}, on ${content.models[model].name}`,
    cell.median
      ? `median ${write(cell.median[0])} [${cell.median.slice(1).map(write).join(", ")}]`
      : "no median: the attack does not look for the closest image",
    cell.reached || row.attack !== null
      ? `accuracy ${cell.reached ? "" : `at ${general(cell.limit, 6)}${unitOf(norm)} `}`
        + `${percent(cell.accuracy[0], 1)} `
        + `[${cell.accuracy.slice(1).map((each) => percent(each, 1)).join(", ")}]`
      : `accuracy ${atThreshold(norm)} unknown: ${triedTo(norm, cell)}`,
    plural(cell.num_images, "image"),
  ];
  if (cell.eight_bit) lines.push(`adversarial in 8 bits, rounded / nudged: ${eightBit(cell)}`);
  if (row.attack !== null) {
    lines.push(cell.num_queries === null
      ? "queries not counted"
      : `${count(cell.num_queries)} queries per image`
        + (cell.num_gradients ? `, ${count(cell.num_gradients)} with gradient` : ""));
    if (cell.num_rejected) {
      lines.push(`${cell.num_rejected} of ${plural(cell.num_claimed, "reported example")} rejected`);
    }
  }
  if (cell.num_by_search) {
    lines.push(`${plural(cell.num_by_search, "image")} adversarial only because the model's`
      + " latent search fails");
  }
  return [...lines, ...cell.warnings.map((reason) => `(!) ${reason}`)];
}

/* Which attacks don't take which models, and why. */
function notTaken(block) {
  const items = content.attacks.flatMap((attack) => {
    if (attack.norm !== block.norm) return [];
    const reasons = [...new Set(attack.refusals.filter(Boolean))];
    return reasons.map((why) => {
      const names = content.models.filter((_, model) => attack.refusals[model] === why);
      return `${attack.title} on ${names.map((model) => model.name).join(", ")}: ${why}`;
    });
  });
  return items.length ? folded("What was not tried, and why", items) : "";
}

function refusedClaims(block) {
  const items = block.rows.flatMap((row) => row.cells.flatMap((cell, model) => {
    if (row.attack === null || !cell?.num_rejected) return [];
    const reasons = Object.entries(cell.rejections)
      .map(([reason, number]) => `${number} ${reason.replaceAll("_", " ")}`).join(", ");
    return [`${row.title} on ${content.models[model].name}: ${cell.num_rejected} of `
      + `${cell.num_claimed} reported (${reasons})`];
  }));
  return folded(items.length ? "Reported examples that verification rejected"
    : "Verification rejected no reported example", items);
}

function folded(title, items) {
  if (!items.length) return element("p", { class: "fine" }, `${title}.`);
  return element("details", { class: "fine" }, element("summary", {}, title),
    element("ul", {}, items.map((item) => element("li", {}, item))));
}

// One tip for all cells, shown beside what the pointer is over or the focus is in.

function tipped(lines) {
  if (!lines) return {};
  const show = (event) => showTip(event.currentTarget, lines);
  return { mouseenter: show, mouseleave: hideTip, focusin: show, focusout: hideTip };
}

function showTip(target, lines) {
  const tip = byId("tip"), box = target.getBoundingClientRect();
  tip.replaceChildren(...lines.map((line, number) =>
    element("div", { class: number ? null : "tip-title" }, line)));
  tip.hidden = false;
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + window.scrollY}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

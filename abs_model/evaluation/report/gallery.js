// The gallery: its filters, its entries, and a card for each of them.

const { gallery } = content;
const CLOSEST = "closest", ALL = "all", PAGE = 48;
const state = { norm: 0, model: 0, attack: CLOSEST, label: ALL, order: "index", open: false,
  rest: false };
let entries = [], numDrawn = 0, drawing = 0;

/* The address of a choice of images; the attack is null for the closest of all. */
function imagesHash({ norm, model, attack }) {
  return hashOf({ norm, model, attack: attack ?? CLOSEST });
}

function hashOf(choice) {
  const named = {
    norm: content.norms[choice.norm].key,
    model: choice.model === ALL ? ALL : choice.model,
    attack: choice.attack === CLOSEST ? CLOSEST : content.attacks[choice.attack].name,
  };
  if ((choice.label ?? ALL) !== ALL) named.label = choice.label;
  if ((choice.order ?? "index") !== "index") named.order = choice.order;
  return `#images?${new URLSearchParams(named)}`;
}

/* Takes over what an address asks for, as far as it is there; returns whether it is one. */
function readHash() {
  const [place, query] = location.hash.split("?");
  if (place !== "#images" || !query) return false;
  const asked = new URLSearchParams(query);
  const norm = content.norms.findIndex((each) => each.key === asked.get("norm"));
  const model = asked.get("model") === ALL ? ALL : Number(asked.get("model"));
  const attack = content.attacks.findIndex((each) => each.name === asked.get("attack"));
  state.norm = Math.max(norm, 0);
  state.model = model === ALL || content.models[model] ? model : 0;
  state.attack = attack >= 0 ? attack : CLOSEST;
  const label = asked.has("label") ? Number(asked.get("label")) : ALL;
  state.label = gallery.labels.includes(label) ? label : ALL;
  state.order = ["nearest", "farthest"].includes(asked.get("order")) ? asked.get("order") : "index";
  return true;
}

function attackChoices() {
  const models = state.model === ALL ? content.models.map((_, model) => model) : [state.model];
  return content.attacks.flatMap((attack, number) =>
    attack.norm === state.norm && models.some((model) => gallery.found[model][number])
      ? [number] : []);
}

function selectedModels() {
  return state.model === ALL ? content.models.map((_, model) => model) : [state.model];
}

function drawFilters() {
  const labels = [...new Set(gallery.labels)].sort((a, b) => a - b);
  const attacks = attackChoices();
  if (!attacks.includes(state.attack)) state.attack = CLOSEST;
  const those = (which) => attacks.filter((each) => which(content.attacks[each]))
    .map((each) => [each, content.attacks[each].title]);
  const inGroup = (group) => those((attack) => !attack.targeted && attack.group === group);
  const parts = [
    choice("norm", "Norm", content.norms.map((_, number) => [number, normName(number)])),
    select("model", "Model", [["", [...content.models.map((model, number) => [number, model.name]),
      ...(numModels > 1 ? [[ALL, "all, image by image"]] : [])]]]),
    select("attack", "Attack", [["", [[CLOSEST, "closest of all attacks"]]],
      ["The paper's", inGroup("paper")], ["Stronger", inGroup("stronger")],
      ["Targeted", those((attack) => attack.targeted)]]),
    choice("label", "Label", [[ALL, "all"], ...labels.map((label) => [label, String(label)])]),
    select("order", "Order", [["", [["index", "by image"], ["nearest", "nearest first"],
      ["farthest", "farthest first"]]]]),
    tick("rest", "Also images without an adversarial one"),
    hasReconstructions() ? tick("open", "Reconstructions unfolded") : null,
  ];
  const focused = document.activeElement?.id;
  byId("filters").replaceChildren(...parts.filter(Boolean));
  if (focused && byId("filters").querySelector(`[id="${CSS.escape(focused)}"]`)) {
    byId(focused).focus();
  }
}

function hasReconstructions() {
  return selectedModels().some((model) => gallery.reconstructions[model]);
}

/* Buttons of which one is chosen. */
function choice(key, title, options) {
  return element("div", { class: "choice", role: "radiogroup", "aria-label": title },
    element("span", { class: "heading" }, title),
    element("div", {}, options.map(([value, text]) => {
      const id = `pick-${key}-${value}`;
      return element("span", {},
        element("input", { type: "radio", name: key, id, checked: state[key] === value,
          change: () => change(key, value) }),
        element("label", { for: id }, text));
    })));
}

function select(key, title, groups) {
  const option = ([value, text]) =>
    element("option", { value, selected: state[key] === value }, text);
  const values = groups.flatMap(([, options]) => options.map(([value]) => value));
  const children = groups.filter(([, options]) => options.length).map(([name, options]) =>
    name ? element("optgroup", { label: name }, options.map(option)) : options.map(option));
  return element("label", { class: "select" }, element("span", { class: "heading" }, title),
    element("select", { id: `select-${key}`,
      change: (event) => change(key, values[event.target.selectedIndex]) }, children));
}

function tick(key, title) {
  return element("label", { class: "tick" },
    element("input", { type: "checkbox", id: `tick-${key}`, checked: state[key],
      change: (event) => change(key, event.target.checked) }), ` ${title}`);
}

async function change(key, value) {
  state[key] = value;
  history.replaceState(null, "", hashOf(state));
  await showGallery();
  if (byId("cards").getBoundingClientRect().top < 0) byId("count").scrollIntoView();
}

/* What is known of an image under an attack on a model. */
function entryOf(model, attack, index) {
  const found = gallery.found[model][attack], row = found.index.indexOf(index);
  if (row < 0) return null;
  const place = found.place[row];
  return { model, attack, index, place, label: gallery.labels[index],
    // With an image or without: a published evaluation keeps the closest ones only.
    held: found.holds[row],
    scale: place === null ? 0 : found.scales[place], packed: found.perturbations,
    target: found.target[row], cleanSuccess: found.clean_success[row],
    cleanPrediction: found.clean_prediction[row], prediction: found.prediction[row],
    distance: found.distance[row], queries: found.queries[row], refused: found.refused[row],
    eightBit: found.eight_bit[row] };
}

function findEntries() {
  const made = [];
  for (let index = 0; index < gallery.num_images; index += 1) {
    if (state.label !== ALL && gallery.labels[index] !== state.label) continue;
    for (const model of selectedModels()) {
      const attack = state.attack === CLOSEST
        ? gallery.closest[model][state.norm][index] : state.attack;
      if (attack === null || !gallery.found[model][attack]) continue;
      const entry = entryOf(model, attack, index);
      if (entry) made.push(entry);
    }
  }
  return made;
}

function showGallery() {
  drawFilters();
  const all = findEntries(), held = all.filter((entry) => entry.held);
  const lost = held.filter((entry) => entry.place === null).length;
  const errors = all.filter((entry) => entry.cleanSuccess).length;
  const nothing = all.length - held.length - errors;
  const number = (entry) => entry.distance ?? Infinity;
  entries = state.rest ? all : held;
  const sign = { nearest: 1, farthest: -1 }[state.order];
  if (sign) {
    entries.sort((a, b) => number(a) === number(b) ? 0 : sign * (number(a) - number(b)));
  }
  const left = state.rest ? "" : " (not shown)";
  const texts = [plural(held.length, "adversarial image")];
  if (lost) texts.push(`${lost} of them not kept`);
  if (errors) texts.push(`${errors} ${whenClean(all[0])}${left}`);
  if (nothing) texts.push(`${nothing} without an adversarial image${left}`);
  byId("count").textContent = all.length ? `${texts.join("; ")}.` : "There is nothing of this.";
  drawing += 1;
  numDrawn = 0;
  return drawMore();
}

async function drawMore() {
  const now = drawing, next = entries.slice(numDrawn, numDrawn + PAGE);
  numDrawn += next.length;
  const more = byId("more"), remaining = entries.length - numDrawn;
  more.hidden = remaining === 0;
  more.textContent = `Show ${Math.min(PAGE, remaining)} more of ${count(remaining)}`;
  const cards = await Promise.all(next.map(drawCard));
  // Another choice may have been made meanwhile.
  if (now !== drawing) return;
  if (next[0] === entries[0]) byId("cards").replaceChildren();
  byId("cards").append(...cards);
}

async function drawCard(entry) {
  const clean = imageAt(await unpack(gallery.clean), entry.index);
  const model = content.models[entry.model];
  const pictures = [picture(drawImage(clean, `Test image ${entry.index}`), "clean",
    prediction(entry.cleanPrediction, entry.label))];
  if (entry.place !== null) {
    const perturbation = new Int8Array(imageAt(await unpack(entry.packed), entry.place));
    const adversarial = add(clean, perturbation, entry.scale);
    pictures.push(
      picture(drawImage(adversarial, `Adversarial image of ${entry.index}`), "adversarial",
        prediction(entry.prediction, entry.label)),
      picture(drawPerturbation(perturbation, "Perturbation"), "perturbation",
        [`±${general(entry.scale, 2)}`]));
  } else if (entry.held) {
    pictures.push(element("p", { class: "fine" }, "The adversarial image was not kept."));
  }
  const queries = entry.queries === null ? "queries not counted" : plural(entry.queries, "query")
    .replace("querys", "queries");
  const card = element("article", { class: "card" },
    element("header", {},
      element("span", {}, element("b", {}, `#${entry.index}`), ` label ${entry.label}`,
        entry.target === null ? "" : `, target ${entry.target}`),
      state.model === ALL ? element("span", { class: "of" }, swatch(model), model.name) : null,
      element("span", { class: "distance" }, outcome(entry))),
    element("div", { class: "pictures" }, pictures),
    element("footer", {}, `${content.attacks[entry.attack].title} · ${queries}`
      + (entry.eightBit ? ` · in 8 bits: ${entry.eightBit}` : "")));
  if (gallery.reconstructions[entry.model]) await addReconstructions(card, entry);
  return card;
}

/* Why there is nothing to attack. */
function whenClean(entry) {
  return entry.target === null ? "misclassified when clean" : "of the target when clean";
}

function outcome(entry) {
  if (entry.held) {
    return [...normName(state.norm), " ",
      element("b", {}, distance(entry.distance, state.norm, { digits: 4 })), unitOf(state.norm)];
  }
  if (entry.cleanSuccess) return [whenClean(entry)];
  if (entry.refused) return [`rejected: ${entry.refused}`];
  const limit = state.attack === CLOSEST ? content.curves[state.norm][entry.model].limit
    : content.attacks[entry.attack].limits[entry.model];
  return [limit === null ? "none found"
    : `none within ${general(limit, 6)}${unitOf(state.norm)}`];
}

function picture(drawn, title, caption) {
  return element("figure", {}, drawn, element("figcaption", {}, title, element("br"), caption));
}

function prediction(predicted, label) {
  return element("span", { class: predicted === label ? "right" : "wrong" },
    `predicted ${predicted}`);
}

// Reconstructions: of the clean image, and of the adversarial one where it is the closest.

async function addReconstructions(card, entry) {
  const button = element("button", { type: "button", class: "unfold", "aria-expanded": "false" },
    "Reconstructions");
  const toggle = async () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(open));
    card.classList.toggle("open", open);
    card.querySelector(".reconstructions")?.remove();
    if (open) card.append(await drawReconstructions(entry));
  };
  button.addEventListener("click", async () => {
    await toggle();
    card.scrollIntoView({ block: "nearest" });
  });
  card.querySelector("footer").append(button);
  if (state.open) await toggle();
}

async function drawReconstructions(entry) {
  const known = gallery.reconstructions[entry.model];
  const isClosest = gallery.closest[entry.model][state.norm][entry.index] === entry.attack;
  const rows = [await drawRow("clean", known.clean, entry)];
  if (entry.place !== null) {
    rows.push(isClosest
      ? await drawRow("adversarial", known.closest[state.norm], entry)
      : element("p", { class: "fine" }, "Those of adversarial images are in this page for the "
        + `closest of all attacks only, here ${closestTitle(entry)}.`));
  }
  return element("div", { class: "reconstructions" }, rows,
    element("p", { class: "fine" }, "Each class's reconstruction, with its weighted energy in nats;"
      + " the lowest decides and is framed."));
}

function closestTitle(entry) {
  return content.attacks[gallery.closest[entry.model][state.norm][entry.index]].title;
}

async function drawRow(title, known, entry) {
  const row = known ? known.indices.indexOf(entry.index) : -1;
  if (row < 0) return element("p", { class: "fine" }, `No reconstructions of the ${title} image.`);
  const energies = known.energies[row], bytes = await unpack(known.images);
  const lowest = energies.indexOf(Math.min(...energies.filter((each) => each !== null)));
  return element("div", { class: "classes" }, element("h4", {}, title),
    energies.map((energy, label) => {
      const kind = label !== lowest ? "" : label === entry.label ? "right" : "wrong";
      const text = energy === null ? NONE : energy.toFixed(Math.abs(energy) < 1000 ? 1 : 0);
      return element("figure", { class: kind },
        drawImage(imageAt(bytes, row * energies.length + label),
          `Reconstruction by class ${label}`),
        element("figcaption", {}, element("b", {}, `${label} `), text));
    }));
}

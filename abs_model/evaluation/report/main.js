// The frame around tables, curves and gallery: what the page is of, and how that was made.

const UNKNOWN = "unknown";

function drawHead() {
  const { about } = content;
  const parts = [
    plural(numModels, "model"),
    plural(content.attacks.length, "attack"),
    `${count(content.num_images)} attacked and ${count(content.num_clean)} clean test images`,
    about.dataset ? `of ${about.dataset.name}` : "",
  ];
  byId("summary").textContent = `${parts.slice(0, 3).join(", ")} ${parts[3]}`;
  byId("origin").textContent = [
    content.finished ? `Last result ${content.finished} UTC` : null,
    content.commits.length ? `${content.commits.length > 1 ? "commits" : "commit"} ${commits()}`
      : null,
    about.seed === undefined ? null : `seed ${about.seed}`,
    content.devices.join(" and "),
  ].filter(Boolean).join(" · ");
  const links = [["overview", ["Overview"]],
    ...content.blocks.map(({ norm }) => [`norm-${content.norms[norm].key}`, normName(norm)]),
    ["curves", ["Curves"]], ["images", ["Images"]], ["details", ["How it was made"]]];
  byId("contents").append(...links.map(([id, text]) => element("a", { href: `#${id}` }, text)));
  const notes = [...content.notes];
  if (!content.complete) {
    notes.unshift("This evaluation isn't complete: figures are of the images done so far.");
  }
  if (!("DecompressionStream" in window)) {
    notes.unshift("The images need a newer browser: Chromium 80, Firefox 113 or Safari 16.4.");
  }
  byId("notes").append(...notes.map((note) => element("p", { class: "note" }, note)));
}

function drawFacts() {
  const { about } = content;
  const shape = (about.dataset?.image_shape ?? gallery.shape).join("×");
  const facts = [
    ["Data set", `${about.dataset?.name ?? UNKNOWN}, test split, ${shape}`],
    ["Models", content.models.map((model) => model.name + whence(model.name)).join(", ")],
    ["Seed", about.seed ?? UNKNOWN],
    ["Last result", content.finished ? `${content.finished} UTC` : UNKNOWN],
    ["Commits", content.commits.join(", ") || UNKNOWN],
    ["Hardware", content.devices.join(" and ") || UNKNOWN],
    ["Packages", content.packages.join(" and ") || UNKNOWN],
  ];
  byId("facts").append(...facts.flatMap(([term, text]) =>
    [element("dt", {}, term), element("dd", {}, String(text))]));
}

/* Those that found the results, the middle left out of a long list. */
function commits() {
  const short = content.commits.map((each) => each.replace(/^(.{10})[0-9a-f]*/, "$1"));
  return (short.length > 3 ? [short[0], "…", short[short.length - 1]] : short).join(", ");
}

/* Where a model is from, where its name does not say it. */
function whence(name) {
  const spec = (content.about.models_from ?? []).find((each) => each.name === name);
  if (!spec || (spec.path === name && !spec.binary)) return "";
  return ` (${spec.path}${spec.binary ? ", thresholded images" : ""})`;
}

function drawSettings() {
  const head = ["Attack", "Norm", "Group", "Models", "Settings"];
  const groups = { paper: "the paper's", stronger: "stronger" };
  const rows = content.attacks.flatMap((attack) => {
    const sorts = alike(attack), rowspan = sorts.length;
    const first = [
      element("th", { scope: "row", rowspan }, attack.title, element("small", {}, attack.name)),
      element("td", { rowspan }, normName(attack.norm)),
      element("td", { rowspan }, groups[attack.group]),
    ];
    return sorts.map(([text, models], number) => element("tr", {}, number ? null : first,
      element("td", {}, models.join(", ")), element("td", { class: "code" }, text)));
  });
  byId("settings").append(element("details", {},
    element("summary", {}, "Settings of all attacks"),
    element("div", { class: "scroll" }, element("table", { class: "settings" },
      element("thead", {}, element("tr", {},
        head.map((each) => element("th", { scope: "col" }, each)))),
      element("tbody", {}, rows)))));
}

/* Models by the settings they were attacked with. */
function alike(attack) {
  const groups = new Map();
  attack.settings.forEach((settings, model) => {
    if (settings === null) return;
    const text = Object.entries(settings).map(([name, value]) =>
      `${name} ${JSON.stringify(value)}`).join(", ") || "none";
    groups.set(text, [...(groups.get(text) ?? []), content.models[model].name]);
  });
  return [...groups].map(([text, models]) =>
    [text, models.length === numModels ? ["all"] : models]);
}

function explainImages() {
  const limited = gallery.num_images < content.num_images
    ? ` Of the ${count(content.num_images)} attacked images, the first `
      + `${count(gallery.num_images)} are in this page.` : "";
  byId("images-explanation").textContent = "Every one was classified and measured again."
    + " Predictions: blue is the label, orange another class. Perturbation: red is brighter, blue"
    + " darker, each on its own scale, which stands below it; pixels are from 0 to 1. For display,"
    + " a perturbation is rounded to 1/127 of its scale; distances and predictions are those of the"
    + ` unrounded images.${limited}`;
}

setSizes();
drawHead();
drawOverview();
drawEightBit();
drawNormTables();
drawCurves();
explainImages();
drawFacts();
drawSettings();
byId("more").addEventListener("click", drawMore);
const linked = readHash();
if (content.attacks.length) {
  showGallery().then(() => linked && byId("images").scrollIntoView());
} else {
  byId("images").hidden = true;
}
window.addEventListener("hashchange", async () => {
  if (!readHash()) return;
  await showGallery();
  byId("images").scrollIntoView();
});

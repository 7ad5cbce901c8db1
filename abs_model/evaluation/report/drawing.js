// Unpacking images, and drawing them.

const [HEIGHT, WIDTH, CHANNELS] = content.gallery.shape;
const SIZE = HEIGHT * WIDTH * CHANNELS;
const STEPS = 127;
const unpacked = new Map();

/* The bytes of what Python packed: base64 of zlib. */
function unpack(packed) {
  if (!packed) return Promise.resolve(new Uint8Array());
  if (!unpacked.has(packed)) unpacked.set(packed, inflate(packed));
  return unpacked.get(packed);
}

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* The image at a place of many, as a view. */
function imageAt(bytes, place) {
  return bytes.subarray(place * SIZE, (place + 1) * SIZE);
}

/* The clean image and its perturbation, in steps of scale / 127, added. */
function add(clean, perturbation, scale) {
  return clean.map((value, position) =>
    Math.min(Math.max(Math.round(value + 255 * scale * perturbation[position] / STEPS), 0), 255));
}

/* A canvas of which each pixel is a pixel of the image; the style sheet enlarges it. */
function canvas(pixels, description) {
  const made = element("canvas", { width: WIDTH, height: HEIGHT, role: "img",
    "aria-label": description });
  made.getContext("2d").putImageData(new ImageData(pixels, WIDTH, HEIGHT), 0, 0);
  return made;
}

/* Tells the style sheet how large images are, and by which whole numbers to enlarge them. */
function setSizes() {
  const { style } = document.documentElement;
  style.setProperty("--width", `${WIDTH}px`);
  style.setProperty("--height", `${HEIGHT}px`);
  for (const [name, size] of [["large", 112], ["medium", 84], ["small", 56]]) {
    const enlarge = Math.max(1, Math.round(size / Math.max(WIDTH, HEIGHT)));
    style.setProperty(`--enlarge-${name}`, String(enlarge));
  }
}

function drawImage(image, description) {
  const pixels = new Uint8ClampedArray(4 * HEIGHT * WIDTH);
  for (let pixel = 0; pixel < HEIGHT * WIDTH; pixel += 1) {
    const values = image.subarray(pixel * CHANNELS, (pixel + 1) * CHANNELS);
    const gray = values.reduce((sum, value) => sum + value, 0) / CHANNELS;
    pixels.set(CHANNELS === 3 ? [...values, 255] : [gray, gray, gray, 255], 4 * pixel);
  }
  return canvas(pixels, description);
}

/* Red is brighter, blue darker; of several channels the one that changed most. */
function drawPerturbation(perturbation, description) {
  const pixels = new Uint8ClampedArray(4 * HEIGHT * WIDTH);
  for (let pixel = 0; pixel < HEIGHT * WIDTH; pixel += 1) {
    let strongest = 0;
    for (let channel = 0; channel < CHANNELS; channel += 1) {
      const value = perturbation[pixel * CHANNELS + channel];
      if (Math.abs(value) > Math.abs(strongest)) strongest = value;
    }
    pixels.set([...diverging(strongest / STEPS), 255], 4 * pixel);
  }
  return canvas(pixels, description);
}

const DARKER = [[255, 255, 255], [103, 169, 207], [11, 59, 122]];
const BRIGHTER = [[255, 255, 255], [239, 138, 98], [140, 10, 30]];

/* The color of a value from -1 to 1. */
function diverging(value) {
  const colors = value < 0 ? DARKER : BRIGHTER, place = 2 * Math.abs(value);
  const left = Math.min(Math.floor(place), 1), share = place - left;
  const [from, to] = [colors[left], colors[left + 1]];
  return from.map((each, channel) => each + share * (to[channel] - each));
}

// What all views use: the data, elements, arrays, and the token and head that are chosen.
export const data = JSON.parse(document.getElementById("data").textContent);
const KINDS = { f4: Float32Array, i1: Int8Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** Return an array's numbers and its shape. */
export function unpack({ dtype, shape, scale, data: text }) {
  const binary = atob(text), codes = new Uint8Array(binary.length), bytes = codes.buffer;
  for (let i = 0; i < codes.length; i++) codes[i] = binary.charCodeAt(i);
  if (dtype === "f2") return { shape, values: Float32Array.from(new Uint16Array(bytes), half) };
  const raw = new KINDS[dtype](bytes);
  return { shape, values: dtype.endsWith("1") ? Float32Array.from(raw, (x) => x * scale) : raw };
}

/** Return the least and the largest of numbers, however many: as arguments of Math.min, 100,000 are too many. */
export const extent = (values) => values.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);

/** Make an element; texts become text nodes, never markup. */
export function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "text", "rect", "line", "g"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export const view = (id) => document.querySelector(`#${id} .view`);
export const chosen = { place: data.ids.length - 1, layer: 0, head: 0 };
const followers = [];
export const follow = (draw) => { followers.push(draw); draw(); };
export function choose(change) {
  Object.assign(chosen, change);
  for (const draw of followers) draw();
}

/** Make a group's buttons one stop of the Tab key, in which arrow keys choose; return what marks the chosen one. */
export function rove(group, columns) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = step && group.children[[...group.children].indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.click();
    next.focus();
  });
  return (at) => [...group.children].forEach((button, i) => {
    button.setAttribute("aria-pressed", i === at);
    button.tabIndex = i === at ? 0 : -1;
  });
}

const VISIBLE = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };
/** Return a text that can be looked at: spaces and what has no shape or turns the line around are spelled out. */
export const visible = (text) =>
  text.replace(/[ \n\t\r]/g, (char) => VISIBLE[char])
    .replace(/[\p{Cc}\p{Cf}\p{Z}]/gu, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);

const dark = matchMedia("(prefers-color-scheme: dark)").matches, WARM = dark ? [240, 153, 77] : [214, 101, 10], COLD = dark ? [98, 181, 245] : [20, 120, 200];
/** Draw rows of numbers in [-1, 1]: blue below and above zero of a scale of one sign, orange above with two; NaN grey. */
export function heatmap(canvas, rows, columns, value, signed = false) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++, at += 4) {
      const x = value(i, j), warm = signed && x > 0;
      [image.data[at], image.data[at + 1], image.data[at + 2]] = Number.isNaN(x) ? [128, 128, 128] : warm ? WARM : COLD;
      image.data[at + 3] = Number.isNaN(x) ? 150 : 255 * Math.min(Math.abs(x), 1);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Draw a bar with its name and number. */
export const bar = (name, share, number, off = false) =>
  make("div", { class: "bar" }, make("bdi", { title: name }, name),
    make("i", { class: off ? "off" : "", style: `width:${100 * Math.min(share, 1)}%` }), make("span", {}, number));

export const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(1) : p === 0 ? "0" : p < 1e-5 ? "under 0.001" : (100 * p).toPrecision(2)) + " %";
export const short = (n) => {
  const rounded = Number(n.toPrecision(3)); // first: 999,999 is 1 M
  const [size, unit] = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => rounded >= size) ?? [1, ""];
  return (rounded / size).toPrecision(3).replace(/\.0+$/, "") + (unit && ` ${unit}`);
};

document.getElementById("notes").append(...data.notes.map((text) => make("p", { class: "note" }, text)));

// Views 8 and 9: training and scaling.
const significant = (x, digits = 4) => Number(x.toPrecision(digits)).toString();
/** Draw lines over a common axis of steps; each is {name, points: [[x, y], …], colour, dashes}. */
function lines(title, series, log, [first, last]) {
  const shown = series.map((s) => ({ ...s, points: s.points.filter(([, y]) => !log || y > 0) })).filter((s) => s.points.length);
  if (!shown.length) return "";
  const [wide, high] = [500, 190], y = (v) => (log ? Math.log10(v) : v), all = shown.flatMap((s) => s.points.map((p) => y(p[1])));
  const [low, top] = [Math.min(...all), Math.max(...all)];
  const at = ([px, py]) => `${64 + ((wide - 79) * (px - first)) / (last - first || 1)} ${high - 24 - ((high - 64) * (y(py) - low)) / (top - low || 1)}`;
  const number = (v) => significant(log ? 10 ** v : v, 3);
  return make("div", {}, make("h3", {}, log ? `${title}, logarithmic` : title), make("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, role: "img", "aria-label": title },
    ...shown.map((s) => (s.points.length > 1 ? make("path", { d: "M" + s.points.map(at).join("L"), fill: "none", stroke: s.colour, "stroke-width": 2, "stroke-dasharray": s.dashes ?? "" })
      : make("circle", { cx: at(s.points[0]).split(" ")[0], cy: at(s.points[0]).split(" ")[1], r: 4, fill: s.colour }))),
    make("text", { x: 4, y: 44, class: "soft" }, number(top)), ...(top > low ? [make("text", { x: 4, y: high - 24, class: "soft" }, number(low))] : []),
    make("text", { x: 64, y: high - 6, class: "soft" }, `step ${first}`), make("text", { x: wide - 8, y: high - 6, "text-anchor": "end", class: "soft" }, `${last}`),
    ...shown.map((s, i) => make("text", { x: wide - 8 - 190 * i, y: 20, "text-anchor": "end", style: `fill:${s.colour}` }, `${s.name}${s.dashes ? " (dashed)" : ""}: ${significant(s.points.at(-1)[1])}`))));
}
/** Say what the curves' shapes tell. */
function diagnoses({ curves: { loss: { train = [], val = [] } = {}, grad_norm: { train: norms = [] } = {} }, stage, new: begun }) {
  const found = [], middle = (xs) => [...xs].sort((a, b) => a - b)[Math.floor(xs.length / 2)];
  if (stage === "pretrain" && begun && train.length) found.push(`The first loss is ${significant(train[0][1])} at step ${train[0][0]}; to guess evenly among ${data.config.vocab_size} tokens costs ln ${data.config.vocab_size} = ${significant(Math.log(data.config.vocab_size))}.`);
  if (val.length > 2 && stage !== "ppo") {
    const [best, lowest] = val.reduce((a, b) => (b[1] < a[1] ? b : a)), last = val.at(-1)[1], before = val[Math.floor((val.length - 1) * 0.75)][1];
    if (last > lowest + 0.01 * Math.abs(lowest)) found.push(`The validation loss was lowest at step ${best}, ${significant(lowest)}, and has risen since to ${significant(last)}: from there on the model learns its examples by heart. Fewer steps, more data or dropout help.`);
    else if (before - last > 0.01 * Math.abs(before)) found.push(`The validation loss still falls at the end, in the last quarter by ${significant(before - last, 2)}: more steps would lower it further.`);
    else found.push("The validation loss is flat at the end: this model, with this schedule, has learnt what it can.");
  }
  if (train.length > 20) {
    const spikes = train.slice(5).filter(([, y], i) => y > 1.3 * middle(train.slice(i, i + 5).map((p) => p[1]))).length;
    found.push(spikes ? `${spikes} of ${train.length} points of the loss stand out upwards by 30 % or more: spikes ask for a smaller learning rate, more warmup or clipping.` : "No point of the loss stands out upwards by 30 % or more: no spikes.");
  }
  if (norms.length > 10) {
    const most = Math.max(...norms.map((p) => p[1])), usual = middle(norms.map((p) => p[1]));
    found.push(`The gradient's norm is usually ${significant(usual, 2)}, at most ${significant(most, 2)}` + (most > 10 * usual ? ": single updates pull far harder than others, which clipping tames." : ": no update pulls far harder than others."));
  }
  return found;
}
const COLOURS = ["var(--accent)", "var(--warm)"], TITLES = { loss: "Loss", lr: "Learning rate", grad_norm: "Gradient norm", kl: "KL divergence" };
if (data.training.curves && Object.keys(data.training.curves).length) {
  const { curves, samples, about } = data.training, steps = Object.values(curves).flatMap((splits) => Object.values(splits)).flatMap((points) => points.map((p) => p[0]));
  const ends = [Math.min(...steps), Math.max(...steps)], first = ["loss", "lr", "grad_norm"], names = [...first.filter((name) => curves[name]), ...Object.keys(curves).filter((name) => !first.includes(name))];
  view("training").append(...(about ? [make("p", { class: "note" }, about)] : []), make("div", { class: "row" },
    ...names.map((name) => lines(TITLES[name] ?? name.replaceAll("_", " "), Object.entries(curves[name]).map(([split, points]) => ({ name: split, points, colour: COLOURS[Number(split === "val")], dashes: split === "val" ? "7 4" : "" })), name === "grad_norm", ends))),
    make("h3", {}, "What the curves say"), make("ul", { id: "diagnoses" }, ...diagnoses(data.training).map((text) => make("li", {}, text))),
    ...(data.through.length > 1 ? [make("h3", {}, "What it writes after these steps"), make("table", { class: "fixed" }, ...data.through.map(({ step, sample }) => make("tr", {}, make("th", {}, step), make("td", {}, make("code", {}, make("bdi", {}, sample))))))] : []),
    ...samples.map(([name, text]) => make("details", {}, make("summary", {}, `Sample ${name}`), make("code", {}, make("bdi", {}, text)))));
} else view("training").append(make("p", { class: "note" }, "These are weights without a run: a folder that train.py wrote has curves and samples."));
{
  const { parameters: n, tokens } = data.scaling, cells = [["parameters N", short(n)], ["tokens for 20 a parameter", short(20 * n)]];
  const drawing = [];
  if (tokens) {
    const c = 6 * n * tokens, best = Math.sqrt(c / 120), size = [500, 340];
    cells.push(["tokens read D", short(tokens)], ["tokens per parameter", significant(tokens / n, 3)], ["compute C = 6 N D", `${short(c)} FLOP`], ["best N for this compute", short(best)], ["best D for this compute", short(20 * best)]);
    const x0 = Math.floor(Math.log10(Math.min(n, best))) - 1, x1 = x0 + 4, y0 = Math.floor(Math.log10(Math.min(tokens, 20 * best))) - 1, y1 = Math.max(y0 + 4, Math.ceil(Math.log10(Math.max(tokens, 20 * best))) + 1);
    const x = (v) => 60 + ((size[0] - 90) * (Math.log10(v) - x0)) / (x1 - x0), y = (v) => size[1] - 34 - ((size[1] - 50) * (Math.log10(v) - y0)) / (y1 - y0);
    // A line through two points far away, cut at the frame.
    const line = (f, attributes) => make("path", { d: "M" + [x0, x1].map((e) => `${x(10 ** e)} ${y(f(10 ** e))}`).join("L"), fill: "none", "clip-path": "inset(0)", ...attributes });
    const dot = (a, b, text, colour) => [make("circle", { cx: x(a), cy: y(b), r: 6, fill: colour }), make("text", { x: x(a) + 9, y: y(b) - 8, style: `fill:${colour}` }, text)];
    const frame = make("svg", { x: 60, y: 16, width: size[0] - 90, height: size[1] - 50, viewBox: `60 16 ${size[0] - 90} ${size[1] - 50}`, style: "border:0;background:none" },
      line((v) => 20 * v, { stroke: "var(--accent)", "stroke-width": 2 }), line((v) => c / (6 * v), { stroke: "var(--soft)", "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
    const ticks = Array.from({ length: x1 - x0 + 1 }, (_, i) => make("text", { x: x(10 ** (x0 + i)), y: size[1] - 16, "text-anchor": "middle", class: "soft" }, short(10 ** (x0 + i)))).concat(Array.from({ length: y1 - y0 + 1 }, (_, i) => make("text", { x: 54, y: y(10 ** (y0 + i)) + 4, "text-anchor": "end", class: "soft" }, short(10 ** (y0 + i)))));
    drawing.push(make("div", {}, make("h3", {}, "Parameters across, tokens upwards"), make("svg", { viewBox: `0 0 ${size.join(" ")}`, width: size[0], role: "img", "aria-label": "This run among parameters and tokens" }, make("rect", { x: 60, y: 16, width: size[0] - 90, height: size[1] - 50, fill: "none", stroke: "var(--line)" }), frame, ...ticks,
      ...dot(n, tokens, "this run", "var(--warm)"), ...dot(best, 20 * best, "best for this compute", "var(--accent)")), make("p", { class: "note" }, "Blue: 20 tokens a parameter. Dashed: all ways to spend this run's compute.")));
  }
  view("scaling").append(make("div", { class: "row" }, make("table", {}, ...cells.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", { class: "number" }, value)))), ...drawing),
    ...(tokens ? [make("p", { id: "scaling-says" }, tokens < 20 * n ? `The model has read ${significant(tokens / n, 2)} tokens a parameter, fewer than 20: for this compute a smaller model and more text would have been better.` : `The model has read ${significant(tokens / n, 2)} tokens a parameter, 20 or more: for this compute a larger model and less text would have been better, though a smaller one is cheaper to use.`)]
      : [make("p", { class: "note" }, "How many tokens these weights were trained on from the first is not written in their folder.")]));
}
document.documentElement.dataset.ready = "yes";

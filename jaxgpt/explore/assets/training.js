// View 8: training.
const significant = (x, digits = 4) => Number(x.toPrecision(digits)).toString();
/** Draw lines over a common axis of steps; each is {name, points: [[x, y], …], colour, dashes}. */
function lines(title, series, log, [first, last]) {
  const shown = series.map((s) => ({ ...s, points: s.points.filter(([, y]) => !log || y > 0) })).filter((s) => s.points.length);
  if (!shown.length) return "";
  const [wide, high] = [500, 190], y = (v) => (log ? Math.log10(v) : v), all = shown.flatMap((s) => s.points.map((p) => y(p[1])));
  const [low, top] = extent(all);
  const at = ([px, py]) => `${64 + ((wide - 79) * (px - first)) / (last - first || 1)} ${high - 24 - (high - 64) * (top > low ? (y(py) - low) / (top - low) : 1)}`;
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
  if (train.length > 20 && stage !== "ppo") {
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
  const { curves, samples, about } = data.training, says = diagnoses(data.training), steps = Object.values(curves).flatMap((splits) => Object.values(splits)).flatMap((points) => points.map((p) => p[0]));
  const ends = extent(steps), first = ["loss", "lr", "grad_norm"], names = [...first.filter((name) => curves[name]), ...Object.keys(curves).filter((name) => !first.includes(name))];
  view("training").append(...(about ? [make("p", { class: "note" }, about)] : []), make("div", { class: "row" },
    ...names.map((name) => lines(TITLES[name] ?? name.replaceAll("_", " "), Object.entries(curves[name]).map(([split, points]) => ({ name: split, points, colour: COLOURS[Number(split === "val")], dashes: split === "val" ? "7 4" : "" })), name === "grad_norm", ends))),
    ...(says.length ? [make("h3", {}, "What the curves say"), make("ul", { id: "diagnoses" }, ...says.map((text) => make("li", {}, text)))] : []),
    ...(data.through.length > 1 ? [make("h3", {}, "What it writes after these steps"), make("table", { class: "fixed" }, ...data.through.map(({ step, sample }) => make("tr", {}, make("th", {}, step), make("td", {}, make("code", {}, make("bdi", {}, sample))))))] : []),
    ...samples.map(([name, text]) => make("details", {}, make("summary", {}, `Sample ${name}`), make("code", {}, make("bdi", {}, text)))));
} else view("training").append(make("p", { class: "note" }, data.absent.training));

// View 9: scaling.
const { parameters: n, tokens, loss, ladder } = data.scaling;
/** Draw points, each {x, y, text, colour}, and curves, each {of: x → y, colour, dashes}, over a logarithmic axis. */
function scatter(title, points, curves, log) {
  const [wide, high, left, top, below] = [500, 340, 60, 16, 34], up = log ? Math.log10 : (v) => v;
  const ends = (values, room) => [Math.min(...values) - room, Math.max(...values) + room];
  const [x0, x1] = ends(points.map((p) => Math.log10(p.x)), 0.5), spread = points.map((p) => up(p.y)), [y0, y1] = ends(spread, log ? 0.5 : 0.08 * (Math.max(...spread) - Math.min(...spread) || 1));
  const x = (v) => left + ((wide - left - 30) * (Math.log10(v) - x0)) / (x1 - x0), y = (v) => high - below - ((high - below - top) * (up(v) - y0)) / (y1 - y0);
  const size = { x: left, y: top, width: wide - left - 30, height: high - below - top }, places = Array.from({ length: 41 }, (_, i) => 10 ** (x0 + ((x1 - x0) * i) / 40));
  const power = Math.log10(y1 - y0), step = log ? 1 : 10 ** Math.floor(power) / (power - Math.floor(power) < 0.5 ? 2 : 1);
  const marks = (from, to, by) => Array.from({ length: Math.max(Math.floor(to / by) - Math.ceil(from / by) + 1, 0) }, (_, i) => (Math.ceil(from / by) + i) * by);
  return make("div", { class: "figure" }, make("h3", {}, title), make("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, role: "img", "aria-label": title }, make("rect", { ...size, fill: "none", stroke: "var(--line)" }),
    make("svg", { ...size, viewBox: Object.values(size).join(" "), style: "border:0;background:none" }, ...curves.map(({ of, colour, dashes }) => make("path", { d: "M" + places.map((v) => `${x(v)} ${y(of(v))}`).join("L"), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes ?? "" }))),
    ...marks(x0, x1, 1).map((e) => make("text", { x: x(10 ** e), y: high - 16, "text-anchor": "middle", class: "soft" }, short(10 ** e))),
    ...marks(y0, y1, step).map((v) => make("text", { x: left - 6, y: y(log ? 10 ** v : v) + 4, "text-anchor": "end", class: "soft" }, log ? short(10 ** v) : significant(v))),
    ...points.map((p) => make("circle", { cx: x(p.x), cy: y(p.y), r: p.text ? 6 : 4, fill: p.colour })),
    // A name stands on the side where there is room.
    ...points.filter((p) => p.text).map((p) => { const right = x(p.x) > wide / 2; return make("text", { x: x(p.x) + (right ? -9 : 9), y: y(p.y) - 8, "text-anchor": right ? "end" : "start", style: `fill:${p.colour}` }, p.text); })));
}
{
  const cells = [["parameters N", short(n)], ["tokens for 20 a parameter", short(20 * n)]], drawing = [], others = ladder?.runs ?? [], law = ladder?.law;
  const c = 6 * n * tokens, best = Math.sqrt(c / 120);
  if (tokens) cells.push(["tokens read D", short(tokens)], ["tokens per parameter", significant(tokens / n, 3)], ["compute C = 6 N D", `${short(c)} FLOP`], ["best N for this compute", short(best)], ["best D for this compute", short(20 * best)]);
  if (tokens || others.length) {
    const points = others.map(([x, y]) => ({ x, y, colour: "var(--soft)" })), twenty = { of: (v) => 20 * v, colour: "var(--accent)" };
    if (tokens) points.push({ x: best, y: 20 * best, text: "best for this compute", colour: "var(--accent)" }, { x: n, y: tokens, text: "this run", colour: "var(--warm)" });
    drawing.push(scatter("Parameters across, tokens upwards", points, tokens ? [twenty, { of: (v) => c / (6 * v), colour: "var(--soft)", dashes: "5 4" }] : [twenty], true));
    drawing[0].append(make("p", { class: "note" }, "Blue: 20 tokens a parameter." + (tokens ? " Dashed: all ways to spend this run's compute." : "") + (others.length ? " Grey: runs of the ladder." : "")));
  }
  if (others.length) {
    const points = others.map(([size, read, y]) => ({ x: 6 * size * read, y, colour: "var(--soft)" }));
    if (tokens && loss !== undefined) points.push({ x: c, y: loss, text: "this run", colour: "var(--warm)" });
    drawing.push(scatter("Compute C across, loss upwards", points, law ? [{ of: (v) => law.factor * v ** -law.exponent, colour: "var(--accent)" }] : [], false));
    drawing[1].append(make("p", { class: "note", id: "law" }, (law ? `Blue: the power law through the ladder, C^−${significant(law.exponent, 3)} (standard error ${significant(law.standard_error, 2)}). ` : "") + "Losses compare only where text and tokenizer are the same."));
    if (tokens && loss !== undefined && law) cells.push(["loss on validation", significant(loss)], ["the ladder's for this compute", significant(law.factor * c ** -law.exponent)]);
  }
  view("scaling").append(make("div", { class: "row" }, make("table", {}, ...cells.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", { class: "number" }, value)))), ...drawing),
    ...(tokens ? [make("p", { id: "scaling-says" }, tokens < 20 * n ? `The run has read ${significant(tokens / n, 2)} tokens a parameter, fewer than 20: for this compute a smaller model and more text would have been better.` : `The run has read ${significant(tokens / n, 2)} tokens a parameter, 20 or more: for this compute a larger model and less text would have been better, though a smaller one is cheaper to use.`)]
      : [make("p", { class: "note" }, data.absent.scaling)]));
}
document.documentElement.dataset.ready = "yes";

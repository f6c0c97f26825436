// Views 7 to 9: architecture, training, scaling.
/** Draw lines over a common axis; each is {name, points: [[x, y], …], colour}. */
function lines(title, series, log = false) {
  const shown = series.map((s) => ({ ...s, points: s.points.filter(([, y]) => y !== null && (!log || y > 0)) })).filter((s) => s.points.length);
  const size = [520, 180], all = shown.flatMap((s) => s.points), y = (v) => (log ? Math.log10(v) : v);
  if (!all.length) return "";
  const [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))], [y0, y1] = [Math.min(...all.map((p) => y(p[1]))), Math.max(...all.map((p) => y(p[1])))];
  const at = ([px, py]) => `${64 + ((size[0] - 79) * (px - x0)) / (x1 - x0 || 1)} ${size[1] - 24 - ((size[1] - 44) * (y(py) - y0)) / (y1 - y0 || 1)}`;
  const number = (v) => Number((log ? 10 ** v : v).toPrecision(3)).toString();
  return make("div", {}, make("h3", {}, title), make("svg", { viewBox: `0 0 ${size.join(" ")}`, width: size[0], role: "img", "aria-label": title },
    ...shown.map((s) => make("path", { d: "M" + s.points.map(at).join("L"), fill: "none", stroke: s.colour, "stroke-width": 2, "stroke-dasharray": s.dashes ?? "" })),
    make("text", { x: 4, y: 24, class: "soft" }, number(y1)), make("text", { x: 4, y: size[1] - 24, class: "soft" }, number(y0)),
    make("text", { x: 64, y: size[1] - 6, class: "soft" }, `step ${x0}`), make("text", { x: size[0] - 8, y: size[1] - 6, "text-anchor": "end", class: "soft" }, `${x1}`),
    ...shown.map((s, i) => make("text", { x: size[0] - 8, y: 16 + 15 * i, "text-anchor": "end", style: `fill:${s.colour}` }, `${s.name}, last ${Number(s.points.at(-1)[1].toPrecision(4))}`))));
}
{
  const { parameters, shares } = data.architecture, total = Object.values(shares).reduce((a, b) => a + b, 0);
  const size = (p) => p.shape.reduce((a, b) => a * b, 1), detail = make("div", { style: "flex:1 1 18rem" });
  const show = (title, prefix, button) => {
    view("architecture").querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b === button));
    const found = parameters.filter((p) => p.path === prefix || p.path.startsWith(`${prefix}/`)), sum = found.reduce((n, p) => n + size(p), 0);
    detail.replaceChildren(make("h3", {}, `${title}: ${sum.toLocaleString("en")} parameters, ${percent(sum / total)} of all`), ...found.map((p) => {
      const most = Math.max(...p.counts);
      return make("div", {}, make("div", {}, make("code", {}, p.path), ` ${p.axes} = ${p.shape.join(" × ")}, std ${p.std.toPrecision(3)}`),
        make("svg", { viewBox: "0 0 320 60", width: 320, role: "img", "aria-label": `Histogram of ${p.path}` }, ...p.counts.map((n, i) => make("rect", { x: 8 * i, y: 44 - (42 * n) / most, width: 7, height: (42 * n) / most, fill: "var(--accent)" })),
          make("text", { x: 0, y: 57, class: "soft" }, p.from.toPrecision(2)), make("text", { x: 318, y: 57, "text-anchor": "end", class: "soft" }, p.to.toPrecision(2))));
    }));
  };
  const has = (prefix) => parameters.some((p) => p.path === prefix || p.path.startsWith(`${prefix}/`));
  const part = (title, prefix) => { const button = make("button", {}, title); button.addEventListener("click", () => show(title, prefix, button)); return has(prefix) ? [button] : []; };
  const layer = make("select", { "aria-label": "Block" }, ...Array.from({ length: layers }, (_, i) => make("option", { value: i }, `block ${i} of ${layers}`)));
  const block = make("div", { class: "block" });
  const fill = () => block.replaceChildren(layer, ...part("layer norm 1", `h_${layer.value}/ln_1`), ...part("attention: q, k, v", `h_${layer.value}/attn/c_attn`), ...part("attention: output W_O", `h_${layer.value}/attn/c_proj`), ...part("layer norm 2", `h_${layer.value}/ln_2`), ...part("feed-forward: up", `h_${layer.value}/mlp/c_fc`), ...part("feed-forward: down", `h_${layer.value}/mlp/c_proj`));
  layer.addEventListener("change", fill);
  fill();
  const parts = make("div", { class: "parts" }, ...part("token embeddings", "wte"), ...part("position embeddings", "wpe"), block, ...part("final layer norm", "ln_f"), ...(has("lm_head") ? part("head", "lm_head") : [make("span", { class: "soft" }, "head: the token embeddings again")]), ...part("scores of labels", "score"));
  view("architecture").append(make("div", { class: "row" }, parts, make("div", {}, make("h3", {}, `${total.toLocaleString("en")} parameters`), ...Object.entries(shares).map(([name, n]) => bar(name, n / total, `${percent(n / total)}, ${short(n)}`))), detail));
  parts.querySelector("button").click();
}
{
  const { train = [], val = [], samples = [] } = data.training, of = (rows, i) => rows.map((row) => [row[0], row[i]]);
  view("training").append(...(train.length || val.length ? [make("div", { class: "row" },
    lines("Loss", [{ name: "train", points: of(train, 1), colour: "var(--accent)" }, { name: "val", points: of(val, 1), colour: "var(--warm)", dashes: "6 3" }]),
    lines("Learning rate", [{ name: "lr", points: of(train, 2), colour: "var(--accent)" }]),
    lines("Gradient norm", [{ name: "norm", points: of(train, 3), colour: "var(--accent)" }], true)),
    ...samples.map(([name, text]) => make("details", {}, make("summary", {}, `Sample ${name}`), make("code", {}, make("bdi", {}, text))))]
    : [make("p", { class: "note" }, "These are weights without a run: a folder that train.py wrote has curves and samples.")]));
}
{
  const { parameters: n, tokens } = data.scaling, rows = [["parameters N", short(n)], ["tokens for 20 a parameter", short(20 * n)]];
  if (tokens) {
    const c = 6 * n * tokens, best = Math.sqrt(c / 120);
    rows.push(["tokens read D", short(tokens)], ["tokens per parameter", (tokens / n).toPrecision(3)], ["compute C = 6 N D", `${short(c)} FLOP`],
      ["best N for this compute", short(best)], ["best D for this compute", short(20 * best)]);
  }
  view("scaling").append(make("table", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", { class: "number" }, value)))),
    ...(tokens ? [] : [make("p", { class: "note" }, "How many tokens these weights were trained on is not written in their folder.")]));
}
document.documentElement.dataset.ready = "yes";

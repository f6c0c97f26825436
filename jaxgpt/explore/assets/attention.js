// Views 4 and 5: attention and the residual stream.
const length = data.ids.length, { n_layer: layers, n_head: heads } = data.config;
const triangle = unpack(data.attention.weights), kept = data.attention.kept, each = (kept * (kept + 1)) / 2;
/** Return a row of a head's weights, of those that are kept, made to sum to 1 again after rounding. */
export function weights(layer, head, row) {
  const start = (layer * heads + head) * each + (row * (row + 1)) / 2;
  const found = Array.from(triangle.values.subarray(start, start + row + 1)), total = found.reduce((a, b) => a + b, 0);
  return found.map((x) => x / (total || 1));
}
/** Draw a head; by square roots, so that small weights can be seen. */
function drawHead(canvas, layer, head) {
  const { values } = triangle, start = (layer * heads + head) * each;
  return heatmap(canvas, kept, kept, (i, j) => (j > i ? 0 : Math.sqrt(values[start + (i * (i + 1)) / 2 + j])));
}
{
  const grid = make("div", { class: "heads", role: "group", "aria-label": "Heads; arrow keys choose one", style: `grid-template-columns:repeat(${Math.min(heads, 16)},1fr)` });
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      const canvas = drawHead(make("canvas"), layer, head);
      grid.append(make("button", { title: `layer ${layer}, head ${head}`, "aria-label": `layer ${layer}, head ${head}`, onclick: () => choose({ layer, head }) }, canvas));
    }
  }
  const mark = rove(grid, heads);
  const large = make("canvas", { class: "big", tabindex: 0, role: "img", "aria-label": "Weights of one head; arrow keys choose a row" });
  const title = make("h3"), row = make("div", { id: "attention-row" }), total = make("p", { class: "note", id: "attention-sum" });
  const pick = (event) => choose({ place: Math.min(kept - 1, Math.max(0, Math.floor((event.offsetY / large.clientHeight) * kept))) });
  large.addEventListener("click", pick);
  large.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") pick(event); });
  large.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose({ place: Math.min(kept - 1, Math.max(0, Math.min(chosen.place, kept - 1) + step)) });
  });
  let drawn = "";
  follow(() => {
    const { layer, head } = chosen, place = Math.min(chosen.place, kept - 1), found = weights(layer, head, place);
    mark(layer * heads + head);
    title.textContent = `Layer ${layer}, head ${head}`;
    if (drawn !== `${layer} ${head}`) {
      drawHead(large, layer, head);
      drawn = `${layer} ${head}`;
    }
    const best = found.map((x, i) => [x, i]).sort((a, b) => b[0] - a[0]).slice(0, 8);
    row.replaceChildren(make("h3", {}, `Place ${place}, `, make("bdi", {}, nameOf(data.ids[place])), ", looks at"),
      ...best.map(([x, i]) => bar(`${i} ${nameOf(data.ids[i])}`, x, percent(x))));
    total.textContent = `The row sums to ${found.reduce((a, b) => a + b, 0).toFixed(6)}.`;
  });
  const scores = unpack(data.attention.scores), raw = unpack(data.attention.symmetric), few = raw.shape[0];
  const weighted = unpack(data.attention.heads), out = unpack(data.attention.out), stages = make("div", { class: "row" });
  const small = (name, value, signed, columns = few) => make("div", {}, make("h3", {}, name), heatmap(make("canvas", { style: "width:10rem;height:10rem", role: "img", "aria-label": name }), few, columns, value, signed));
  const vectors = (name, { values, shape }, index) => {
    const columns = shape.at(-1), own = values.subarray(index * few * columns, (index + 1) * few * columns), most = own.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9);
    return small(name, (i, j) => own[i * columns + j] / most, true, columns);
  };
  follow(() => {
    const { layer, head } = chosen, start = (layer * heads + head) * few * few, scale = data.attention.scales[layer];
    const mine = scores.values.subarray(start, start + few * few);
    const most = mine.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9), seen = mine.reduce((most, x, at) => (at % few > Math.floor(at / few) ? most : Math.max(most, Math.abs(x))), 1e-9), rawMost = raw.values.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9);
    stages.replaceChildren(small("x xᵀ (symmetric)", (i, j) => raw.values[i * few + j] / rawMost, true),
      small("q kᵀ", (i, j) => mine[i * few + j] / most, true), small(`times ${scale.toPrecision(3)}`, (i, j) => (mine[i * few + j] * scale) / most, true),
      small("masked (grey: the future)", (i, j) => (j > i ? NaN : mine[i * few + j] / seen), true), small("softmax", (i, j) => weights(layer, head, i)[j] ?? 0), vectors("times V: what it gathers", weighted, layer * heads + head), vectors("all heads, times W_O", out, layer));
  });
  view("attention").append(...(kept < length ? [make("p", { class: "note" }, `Of this long text, the page holds attention among the first ${kept} places.`)] : []), make("div", { class: "row" }, make("div", {}, make("h3", {}, "All heads: layers down, heads across"), grid), make("div", { style: "flex:1 1 16rem" }, title, large), make("div", {}, row, total)),
    make("details", {}, make("summary", {}, `The stages of this head, on the first ${few} tokens`), make("p", { class: "note" }, "Scores of the stream with itself are symmetric: a looks at b as b at a. Queries and keys give each token two faces, so that they need not be. Orange above zero, blue below; the vectors of the last two have their first numbers across."), stages));
}
{
  const [stream, attention, mlp] = ["stream", "attention", "mlp"].map((name) => unpack(data.stream[name]).values);
  const most = stream.reduce((most, x) => Math.max(most, x), 1e-9), low = stream.reduce((low, x) => Math.min(low, x), Infinity);
  const canvas = heatmap(make("canvas", { style: `width:min(32rem,100%);height:${Math.max(8, layers + 1)}rem;max-height:20rem`, role: "img", "aria-label": "Norms of the residual stream" }), layers + 1, length, (i, j) => Math.log(stream[i * length + j] / low + 1e-9) / (Math.log(most / low) || 1));
  const bars = make("div");
  follow(() => {
    const most = Math.max(...Array.from({ length: layers }, (_, l) => Math.max(attention[l * length + chosen.place], mlp[l * length + chosen.place])));
    bars.replaceChildren(make("h3", {}, `What is added at place ${chosen.place}`), ...Array.from({ length: layers }, (_, l) => ["attention", "mlp"].map((name) => {
      const x = (name === "mlp" ? mlp : attention)[l * length + chosen.place];
      return bar(`${l} ${name}`, x / most, x.toFixed(2), name === "mlp");
    })).flat());
  });
  view("stream").append(make("div", { class: "row" }, make("div", { style: "flex:1 1 18rem" }, make("h3", {}, `Length before each block, from ${low.toFixed(2)} to ${most.toFixed(2)}; places across`), canvas), bars));
}

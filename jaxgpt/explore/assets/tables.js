// Views 2 and 3: embeddings and positions.
{
  const list = make("div"), { snapshots, own, ids } = data.embeddings, size = 460, maps = snapshots.map(({ map }) => unpack(map).values);
  const ranges = [0, 1].map((axis) => extent(maps.flatMap((values) => ids.map((_, i) => values[2 * i + axis]))));
  const picture = make("svg", { viewBox: `0 0 ${size} ${size}`, width: size, role: "img", "aria-label": "Map of embeddings" });
  const step = make("input", { type: "range", id: "snapshot", min: 0, max: snapshots.length - 1, value: Math.max(0, snapshots.findIndex((s) => s.shown)), oninput: () => draw() }), where = make("output");
  function draw() {
    const at = Number(step.value), values = maps[at], id = data.ids[chosen.place], near = snapshots[at].neighbours[own.indexOf(id)] ?? [];
    const xy = (i, axis) => 30 + ((size - 60) * (values[2 * i + axis] - ranges[axis][0])) / (ranges[axis][1] - ranges[axis][0] || 1);
    where.textContent = snapshots[at].step === null ? "" : `${snapshots[at].step}`;
    list.replaceChildren(make("h3", {}, "Nearest to ", make("bdi", {}, nameOf(id))), ...near.map(([j, cosine]) => bar(nameOf(j), Math.max(cosine, 0), cosine.toFixed(3))));
    const close = new Set([id, ...near.map(([j]) => j)]);
    picture.replaceChildren(...ids.map((j, i) => make("circle", { cx: xy(i, 0), cy: xy(i, 1), r: j === id ? 6 : 3.5, fill: close.has(j) ? "var(--warm)" : own.includes(j) ? "var(--accent)" : "var(--soft)" })),
      ...ids.flatMap((j, i) => (close.has(j) || (ids.length < 80 && own.includes(j)) ? [make("text", { x: xy(i, 0) + (xy(i, 0) > size - 70 ? -6 : 6), y: xy(i, 1) - 5, "text-anchor": xy(i, 0) > size - 70 ? "end" : "start" }, nameOf(j).slice(0, 20))] : [])));
  }
  follow(draw);
  view("embeddings").append(...(snapshots.length > 1 ? [make("label", {}, "training step", step, where)] : []), make("div", { class: "row" }, list, make("div", { class: "figure" }, picture, make("p", { class: "note" }, "Orange: the chosen token and its neighbours; blue: others of the text; grey: neighbours of others." + (snapshots.length > 1 ? " All steps are drawn along the same two directions." : "")))));
}
{
  const { learned, table, sinusoidal, cosines, places, bag, order } = data.positions;
  const draw = (title, packed, unit = 0) => {
    const { values, shape: [rows, columns] } = unpack(packed);
    const most = unit || values.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9) * 0.6;
    return make("div", {}, make("h3", {}, title), heatmap(make("canvas", { style: "width:18rem;height:18rem", role: "img", "aria-label": title }), rows, columns, (i, j) => values[i * columns + j] / most, true));
  };
  const said = (ids) => make("div", { class: "tokens" }, ...ids.slice(0, 40).map((id) => make("span", { class: "token" }, make("bdi", {}, nameOf(id)))));
  view("positions").append(make("div", { class: "row" },
    ...(learned ? [draw("Learned: places down, dimensions across", table)] : []), draw("Sines and cosines", sinusoidal, 1),
    draw(`Cosine between places 0 to ${places.at(-1)}`, cosines, 1)),
    make("h3", {}, "A bag of words"), make("p", { class: "note" }, "The same tokens in two orders, through attention without any weights; what it gives is summed over all places."),
    said(data.ids), said(order.map((i) => data.ids[i])),
    make("p", { id: "bag" }, "The sums differ by ", make("b", {}, percent(bag.without)), " of their length without positions: order is lost. With the model's position vectors added they differ by ", make("b", {}, percent(bag.with)), "."));
}

// Views 1 to 3: tokens, embeddings, positions.
{
  const strip = make("div", { class: "tokens" }), about = make("p", { class: "note" });
  data.ids.forEach((id, place) => strip.append(make("button", { class: "token", title: `place ${place}, id ${id}`,
    onclick: () => choose({ place }) }, make("bdi", {}, nameOf(id)))));
  follow(() => {
    [...strip.children].forEach((button, place) => button.setAttribute("aria-pressed", place === chosen.place));
    const id = data.ids[chosen.place], bytes = [...bytesOf(id)].map((b) => b.toString(16).padStart(2, "0")).join(" ");
    about.textContent = `Chosen: place ${chosen.place}, id ${id}, bytes ${bytes}`;
  });
  const typed = make("textarea", { id: "typed", "aria-label": "Text of your own", maxlength: 4000, placeholder: "Type a text of your own" });
  const found = make("div", { class: "tokens", id: "typed-tokens" }), count = make("p", { class: "note", id: "typed-count" });
  const merges = make("div", { class: "wide" });
  const show = () => {
    const ids = encode(typed.value), characters = [...typed.value].length;
    found.replaceChildren(...ids.map((id) => make("button", { class: "token", title: id === null ? "not in the vocabulary" : `id ${id}` },
      make("bdi", {}, id === null ? "?" : nameOf(id)))));
    count.textContent = `${ids.length} tokens for ${characters} characters` + (ids.includes(null) ? "; ? is not in the vocabulary" : "");
    merges.replaceChildren(...words(typed.value).slice(0, 40).map((word) => make("details", {},
      make("summary", {}, make("bdi", {}, visible(word))),
      make("table", {}, ...steps(word).map(({ ids, rank }) => make("tr", {}, make("td", { class: "number" }, rank === null ? "bytes" : `merge ${rank}`),
        make("td", {}, make("code", {}, make("bdi", {}, ids.map(nameOf).join(" · ")))))))))); 
  };
  typed.addEventListener("input", show);
  const samples = ["strawberry", " strawberry", "Strawberry", "1234567 + 89", "Привет, мир", "こんにちは", "👩‍👩‍👧"];
  view("tokens").append(strip, about, make("h3", {}, "Tokenise a text of your own"), typed, count, found,
    make("p", {}, "Worth trying: ", ...samples.flatMap((text) => [make("button", { onclick: () => { typed.value = text; show(); } }, visible(text)), " "])),
    ...(known.kind === "bpe" ? [make("h3", {}, "How each word is merged from its bytes"), merges] : []));
  typed.value = samples[0];
  show();
}
{
  const list = make("div"), { neighbours, own, ids, map } = data.embeddings, { values } = unpack(map), size = 460;
  const ranges = [0, 1].map((axis) => { const xs = ids.map((_, i) => values[2 * i + axis]); return [Math.min(...xs), Math.max(...xs)]; });
  const at = (i, axis) => 30 + (size - 60) * (values[2 * i + axis] - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0] || 1);
  const picture = make("svg", { viewBox: `0 0 ${size} ${size}`, width: size, role: "img", "aria-label": "Map of embeddings" });
  follow(() => {
    const id = data.ids[chosen.place], near = neighbours[id] ?? [];
    list.replaceChildren(make("h3", {}, "Nearest to ", make("bdi", {}, nameOf(id))), ...near.map(([j, cosine]) => bar(nameOf(j), Math.max(cosine, 0), cosine.toFixed(3))));
    const close = new Set([id, ...near.map(([j]) => j)]);
    picture.replaceChildren(...ids.map((j, i) => make("circle", { cx: at(i, 0), cy: at(i, 1), r: j === id ? 6 : 3.5,
      fill: close.has(j) ? "var(--warm)" : own.includes(j) ? "var(--accent)" : "var(--soft)" }, )),
      ...ids.flatMap((j, i) => (close.has(j) || (ids.length < 80 && own.includes(j)) ? [make("text", { x: at(i, 0) + 6, y: at(i, 1) - 5 }, nameOf(j))] : [])));
  });
  view("embeddings").append(make("div", { class: "row" }, list, picture));
}
{
  const { learned, table, sinusoidal, cosines, places, bag } = data.positions;
  const draw = (title, packed, unit = 0) => {
    const { values, shape: [rows, columns] } = unpack(packed);
    const most = unit || values.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9) * 0.6;
    return make("div", {}, make("h3", {}, title), heatmap(make("canvas", { style: "width:18rem;height:18rem", role: "img", "aria-label": title }), rows, columns, (i, j) => values[i * columns + j] / most, true));
  };
  view("positions").append(make("div", { class: "row" },
    ...(learned ? [draw("Learned: places down, dimensions across", table)] : []), draw("Sines and cosines", sinusoidal, 1),
    draw(`Cosine between places 0 to ${places.at(-1)}`, cosines, 1)),
    make("p", {}, `Bag of words: attention over this text's embeddings in another order gives a sum that differs by ${percent(bag.without)} without positions, and by ${percent(bag.with)} with them.`));
}

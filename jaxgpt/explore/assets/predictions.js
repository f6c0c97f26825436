// View 6: predictions.
/** Return the distribution that sampling draws from; each logit stands for `counts` tokens. */
export function reshape({ logits, counts }, temperature, topK, topP, minP) {
  const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a]), best = logits[order[0]];
  if (temperature === 0) return logits.map((_, i) => (i === order[0] ? 1 : 0));
  const scaled = logits.map((x) => Math.exp((x - best) / temperature)), kept = logits.map(() => true);
  const drop = (stays) => { let above = 0, before = 0, last = null; for (const i of order) { if (logits[i] !== last) { before = above; last = logits[i]; } if (kept[i] && !stays(i, before)) kept[i] = false; above += stays.weight(i); } };
  const limit = (weight, most) => drop(Object.assign((i, before) => before < most, { weight }));
  if (topK) limit((i) => counts[i], topK);
  let sum = scaled.reduce((sum, x, i) => sum + (kept[i] ? x * counts[i] : 0), 0);
  if (topP < 1) limit((i) => (kept[i] ? (scaled[i] * counts[i]) / sum : 0), topP);
  if (minP) kept.forEach((_, i) => { if (scaled[i] < minP) kept[i] = false; });
  sum = scaled.reduce((sum, x, i) => sum + (kept[i] ? x * counts[i] : 0), 0);
  return scaled.map((x, i) => (kept[i] ? (x * counts[i]) / sum : 0));
}
/** Return a position's logits with their ids; of the tail of a large vocabulary, groups of -1 for an id. */
export function rowOf(place) {
  const { logits, ids, counts } = data.predictions.rows[place], values = Array.from(unpack(logits).values);
  const own = ids ?? values.map((_, i) => i);
  return { logits: values, ids: values.map((_, i) => own[i] ?? -1), counts: values.map((_, i) => (i < own.length ? 1 : counts[i - own.length])) };
}
/** Draw a table of the likeliest tokens at a place, a row for each depth or step. */
function likeliest(rows, place) {
  return make("table", {}, ...rows.map(([name, { best, probs }]) => {
    const { values, shape: [, top] } = unpack(probs);
    return make("tr", {}, make("th", {}, name), ...best[place].map((id, i) => { const p = values[place * top + i]; return make("td", { class: "nowrap", style: `background:color-mix(in srgb, var(--accent) ${Math.round(60 * p)}%, transparent)` }, make("bdi", {}, nameOf(id)), ` ${percent(p)}`); }));
  }));
}
{
  const settings = {}, outputs = {};
  const slider = (name, label, min, max, step, value) => {
    const input = make("input", { type: "range", id: name, min, max, step, value, oninput: () => draw() });
    settings[name] = input;
    outputs[name] = make("output");
    return make("label", {}, label, input, outputs[name]);
  };
  const most = Math.min(200, data.config.vocab_size);
  const sliders = make("div", {}, slider("temperature", "temperature", 0, 3, 0.05, 1), slider("top_k", "top-k", 0, most, 1, 0), slider("top_p", "top-p", 0.01, 1, 0.01, 1), slider("min_p", "min-p", 0, 1, 0.01, 0));
  const bars = make("div", { id: "bars" }), heading = make("h3"), sampled = make("p", { id: "sampled", "aria-live": "polite" });
  const other = make("div"), scrolled = { class: "wide", tabindex: 0, role: "region" }, lens = make("div", { ...scrolled, "aria-label": "Logit lens" }), through = make("div", { ...scrolled, id: "through", "aria-label": "Through training" });
  let shape = [], ids = [];
  function draw() {
    const { place } = chosen, [t, k, p, m] = ["temperature", "top_k", "top_p", "min_p"].map((name) => Number(settings[name].value));
    Object.entries({ temperature: t, top_k: k || "off", top_p: p < 1 ? p : "off", min_p: m || "off" }).forEach(([name, text]) => { outputs[name].textContent = text; });
    const row = rowOf(place), before = reshape(row, 1, 0, 1, 0);
    [shape, ids] = [reshape(row, t, k, p, m), row.ids];
    const order = ids.map((_, i) => i).filter((i) => ids[i] >= 0).sort((a, b) => row.logits[b] - row.logits[a]).slice(0, 12);
    heading.replaceChildren(`After place ${place}, `, make("bdi", {}, nameOf(data.ids[place])));
    bars.replaceChildren(...order.map((i) => { const b = bar(nameOf(ids[i]), shape[i], percent(shape[i]) + (Math.abs(shape[i] - before[i]) > 1e-9 ? ` (was ${percent(before[i])})` : "")); b.dataset.id = ids[i]; b.dataset.p = shape[i]; return b; }));
    const next = data.ids[place + 1], loss = data.predictions.losses[place];
    other.replaceChildren(make("p", { class: "note" }, next === undefined ? "The text ends here." : `The text goes on with ${nameOf(next)}: loss ${loss.toFixed(3)}.`));
    if (data.compared) {
      const { best, losses, name, probs } = data.compared, found = unpack(probs), wide = found.shape[1];
      other.append(make("h3", {}, make("bdi", {}, name), losses[place] === undefined ? "" : `, loss ${losses[place].toFixed(3)}`),
        ...best[place].map((id, i) => bar(nameOf(id), found.values[place * wide + i], percent(found.values[place * wide + i]))));
    }
    if (data.predictions.scores) {
      const { values } = unpack(data.predictions.scores), n = data.labels.length, own = reshape({ logits: Array.from(values.subarray(place * n, (place + 1) * n)), counts: Array(n).fill(1) }, 1, 0, 1, 0);
      other.append(make("h3", {}, "Labels at this place"), ...data.labels.map((label, i) => bar(label, n > 1 ? own[i] : 0, n > 1 ? percent(own[i]) : values[place * n].toFixed(3))));
    }
    lens.replaceChildren(likeliest(data.predictions.lens.map((row, layer) => [layer === data.config.n_layer ? "end" : `before ${layer}`, row]), place));
    through.replaceChildren(likeliest(data.through.map((row) => [`step ${row.step}${row.step === data.step ? " (shown)" : ""}`, row]), place));
  }
  const sample = make("button", { id: "sample", onclick: () => {
    let left = Math.random();
    const i = shape.findIndex((p) => (left -= p) < 0), id = ids[i < 0 ? shape.indexOf(Math.max(...shape)) : i];
    sampled.append(make("bdi", {}, id < 0 ? "(one of the tail) " : `${nameOf(id)} `));
  } }, "Sample");
  follow(draw);
  view("predictions").append(make("div", { class: "row" }, make("div", {}, heading, bars), make("div", {}, make("h3", {}, "Sampling"), sliders, make("p", {}, sample), sampled), other), make("h3", {}, "Logit lens: the likeliest tokens at each depth"), lens,
    ...(data.through.length > 1 ? [make("h3", {}, "Through training: the likeliest tokens after these steps"), through] : []));
}

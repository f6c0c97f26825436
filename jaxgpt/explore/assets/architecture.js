// View 7: architecture.
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
  layer.addEventListener("change", () => { // what was shown of one block is shown of the other
    const shown = block.querySelector('[aria-pressed="true"]')?.textContent;
    fill();
    [...block.children].find((button) => button.textContent === shown)?.click();
  });
  fill();
  const parts = make("div", { class: "parts" }, ...part("token embeddings", "wte"), ...part("position embeddings", "wpe"), block, ...part("final layer norm", "ln_f"), ...(has("lm_head") ? part("head", "lm_head") : [make("span", { class: "soft" }, "head: the token embeddings again")]), ...part("scores of labels", "score"));
  view("architecture").append(make("div", { class: "row" }, parts, make("div", {}, make("h3", {}, `${total.toLocaleString("en")} parameters`), ...Object.entries(shares).map(([name, n]) => bar(name, n / total, `${percent(n / total)}, ${short(n)}`)), detail)));
  parts.querySelector("button").click();
}

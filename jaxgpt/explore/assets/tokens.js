// View 1: tokens.
{
  const strip = make("div", { class: "tokens", role: "group", "aria-label": "Tokens of the text; arrow keys choose one" }), mark = rove(strip, 1), about = make("p", { class: "note" });
  data.ids.forEach((id, place) => strip.append(make("button", { class: "token", title: `place ${place}, id ${id}`,
    onclick: () => choose({ place }) }, make("bdi", {}, nameOf(id)))));
  follow(() => {
    mark(chosen.place);
    const id = data.ids[chosen.place], bytes = [...bytesOf(id)].map((b) => b.toString(16).padStart(2, "0")).join(" ");
    about.textContent = `Chosen: place ${chosen.place}, id ${id}, bytes ${bytes}`;
  });
  const typed = make("textarea", { id: "typed", "aria-label": "Text of your own", maxlength: 4000, placeholder: "Type a text of your own", oninput: () => show() });
  const found = make("div", { class: "tokens", id: "typed-tokens" }), count = make("p", { class: "note", id: "typed-count" });
  const special = make("input", { type: "checkbox", id: "special", oninput: () => show() });
  const step = make("input", { type: "range", id: "merge-step", min: 0, value: 0, "aria-label": "Merges", oninput: () => merge() });
  const stepped = make("output"), merging = make("div", { class: "tokens", id: "merging" }), list = make("div", { class: "wide" });
  const size = (text) => utf8.encode(text.toWellFormed()).length;
  let cut = [];
  const pieceOf = (id) => make("span", { class: "token", title: id === null ? "not in the vocabulary" : `id ${id}` }, make("bdi", {}, id === null ? "?" : nameOf(id)));
  function show() {
    const text = typed.value, ids = encode(text, special.checked), characters = [...text].length, unknown = ids.filter((id) => id === null).length;
    found.replaceChildren(...ids.map(pieceOf));
    count.textContent = `${ids.length} tokens for ${characters} characters (${size(text)} bytes)` + (unknown ? `; ${unknown} (shown as ?) not in the vocabulary` : "");
    if (known.kind === "char") return;
    cut = words(text, special.checked);
    step.max = Math.max(0, ...cut.map((word) => word.steps.length - 1));
    step.value = step.max;
    merge();
    list.replaceChildren(...cut.slice(0, 60).map(({ word, steps }) => make("details", {}, make("summary", {}, make("bdi", {}, visible(word)), ` ${steps.length - 1} merges`),
      make("table", {}, ...steps.map(({ ids, rank }) => make("tr", {}, make("td", { class: "number" }, rank === null ? "bytes" : `merge ${rank}`), make("td", {}, make("code", {}, make("bdi", {}, ids.map(nameOf).join(" · "))))))))));
  }
  function merge() {
    const done = Number(step.value);
    stepped.textContent = `${done} of ${step.max}`;
    merging.replaceChildren(...cut.map(({ steps }) => make("span", { class: "word" }, ...steps[Math.min(done, steps.length - 1)].ids.map(pieceOf))));
  }
  const put = (text) => { typed.value = text; show(); };
  const tries = ["strawberry", " strawberry", "Strawberry", "1234567 + 89 = 1234656", "unbelievably antidisestablishmentarianism", "Привет, мир", "👩‍👩‍👧", data.tokenizer.added?.[0]?.text].filter(Boolean);
  // The first article of the Universal Declaration of Human Rights begins so.
  const scripts = { English: "All human beings are born free and equal", Deutsch: "Alle Menschen sind frei und gleich geboren", Русский: "Все люди рождаются свободными и равными", العربية: "يولد جميع الناس أحراراً متساوين", हिन्दी: "सभी मनुष्य जन्म से स्वतन्त्र और समान हैं", 中文: "人人生而自由，一律平等", 日本語: "すべての人間は生まれながらにして自由であり平等である" };
  const costs = make("table", {}, make("tr", {}, ...["", "text", "characters", "bytes", "tokens", "tokens per character"].map((name) => make("th", {}, name))), ...Object.entries(scripts).map(([name, text]) => {
    const ids = encode(text), characters = [...text].length, unknown = ids.filter((id) => id === null).length;
    return make("tr", {}, make("th", {}, make("bdi", {}, name)), make("td", {}, make("bdi", {}, text)), ...[characters, size(text), unknown ? `${unknown} unknown` : ids.length, unknown ? "" : (ids.length / characters).toFixed(2)].map((n) => make("td", { class: "number" }, n)));
  }));
  view("tokens").append(strip, about, make("h3", {}, "Tokenise a text of your own"), typed,
    ...(known.added?.length ? [make("p", {}, make("label", { class: "check" }, special, make("span", {}, "read special tokens such as ", make("bdi", {}, make("code", {}, known.added[0].text)), " as tokens")))] : []),
    make("p", {}, "Worth trying: ", ...tries.flatMap((text) => [make("button", { onclick: () => put(text) }, make("bdi", {}, visible(text))), " "])), count, found,
    ...(known.kind === "bpe" ? [make("h3", {}, "Merges, step by step"), make("p", { class: "note" }, "Each word begins as bytes; at each step the pair that was merged first in training becomes one piece, until none is left. Nothing is merged across words."),
      make("label", {}, "merges", step, stepped), merging, make("details", {}, make("summary", {}, "Each word's merges, with their ranks"), list)] : []),
    make("details", {}, make("summary", {}, "What the same sentence costs in other scripts"), make("div", { class: "wide" }, costs)),
    ...(data.embeddings.unseen.length ? [make("details", {}, make("summary", {}, "Tokens that training hardly touched"), make("p", { class: "note" }, "Embeddings that lie nearest the mean of all: often tokens that training text never or hardly had, whose vectors were only pushed along with the others. A prompt with one makes a model behave oddly."),
      make("div", { class: "tokens" }, ...data.embeddings.unseen.map(pieceOf)))] : []));
  put("strawberry and strawberries");
}

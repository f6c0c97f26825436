// The model's own tokenizer, as jaxgpt.tokenizers has it: characters, or a byte-level BPE with added tokens.
const known = data.tokenizer;
const utf8 = new TextEncoder(), strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const pieces = new Map(), ranks = new Map(), added = new Map(), merged = [];
let pattern, space, groups = [];
if (known.kind === "char") [...known.chars].forEach((char, id) => { pieces.set(id, utf8.encode(char)); ranks.set(char, id); });
else {
  known.byte_ids.forEach((id, byte) => pieces.set(id, Uint8Array.of(byte)));
  const { values } = unpack(known.merges);
  for (let i = 0; i < values.length; i += 3) {
    const [a, b, id] = values.subarray(i, i + 3);
    ranks.set(a * 2 ** 26 + b, i / 3);
    merged.push(id);
    if (!pieces.has(id)) pieces.set(id, Uint8Array.of(...pieces.get(a), ...pieces.get(b)));
  }
  for (const [id, bytes] of Object.entries(known.others)) pieces.set(Number(id), Uint8Array.from(bytes));
  for (const token of known.added) { pieces.set(token.id, utf8.encode(token.text)); added.set(token.text, token); }
  space = [...known.spaces].map((char) => `\\u{${char.codePointAt(0).toString(16)}}`).join("");
  pattern = new RegExp(`'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${space}\\p{L}\\p{N}]+|[${space}]+(?![^${space}])|[${space}]+`, "gu");
  // Of added tokens that begin at one place the longest; those that are normalized only in what the others leave.
  groups = [false, true].map((late) => known.added.filter((token) => token.normalized === late).map((token) => token.text))
    .filter((texts) => texts.length)
    .map((texts) => new RegExp(texts.sort((a, b) => [...b].length - [...a].length).map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "gu"));
}

export const bytesOf = (id) => pieces.get(id) ?? new Uint8Array();
/** Return an id's text; of bytes that are no text, \xNN for each. */
export function textOf(id) {
  const bytes = bytesOf(id);
  if (!bytes.length) return `[${id}]`;
  try { return strict.decode(bytes); } catch { return [...bytes].map((b) => (b < 128 ? String.fromCharCode(b) : `\\x${b.toString(16)}`)).join(""); }
}
export const nameOf = (id) => visible(textOf(id));

const MOST_STEPS = 300; // of a longer word, these and the last
/** Merge a word's bytes, lowest rank first; return the ids after each step, the first those of its bytes. */
export function steps(word) {
  let ids = [...utf8.encode(word)].map((byte) => known.byte_ids[byte]);
  const found = [{ ids, rank: null }];
  for (;;) {
    let best = Infinity, at = -1;
    for (let i = 0; i + 1 < ids.length; i++) {
      const rank = ranks.get(ids[i] * 2 ** 26 + ids[i + 1]) ?? Infinity;
      if (rank < best) [best, at] = [rank, i];
    }
    if (at < 0) return found;
    ids = [...ids.slice(0, at), merged[best], ...ids.slice(at + 2)];
    if (found.length > MOST_STEPS) found.pop();
    found.push({ ids, rank: best });
  }
}

const wordBefore = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u, wordAfter = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const isSpace = (char) => char !== "" && known.spaces.includes(char);
function* split(finder, text, special) {
  let done = 0;
  for (const match of text.matchAll(finder)) {
    const token = added.get(match[0]);
    let begin = match.index, end = begin + match[0].length;
    if (token.special && !special) continue;
    if (token.single_word && (wordBefore.test(text.slice(0, begin)) || wordAfter.test(text.slice(end)))) continue;
    while (token.lstrip && begin > done && isSpace(text.charAt(begin - 1))) begin--;
    while (token.rstrip && isSpace(text.charAt(end))) end++;
    [begin, end] = [Math.max(begin, done), Math.max(end, done)];
    if (done < begin) yield [text.slice(done, begin), null];
    yield [text.slice(begin, end), token.id];
    done = end;
  }
  if (done < text.length) yield [text.slice(done), null];
}
/** Return a text's words, each with its steps; added tokens are words that nothing is merged in. */
export function words(text, special = false) {
  if (known.kind === "char") return [];
  let parts = text ? [[text.toWellFormed(), null]] : [];
  for (const finder of groups) parts = parts.flatMap(([part, id]) => (id === null ? [...split(finder, part, special)] : [[part, id]]));
  return parts.flatMap(([part, id]) => (id === null ? (part.match(pattern) ?? []).map((word) => ({ word, steps: steps(word) })) : [{ word: part, steps: [{ ids: [id], rank: null }] }]));
}
/** Return a text's ids; null stands for characters that a vocabulary of characters lacks. */
export function encode(text, special = false) {
  if (known.kind === "char") return [...text.toWellFormed()].map((char) => ranks.get(char) ?? null);
  return words(text, special).flatMap((word) => word.steps.at(-1).ids);
}

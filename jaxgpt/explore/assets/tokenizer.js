// The model's own tokenizer, as jaxgpt.tokenizers has it: characters, or a byte-level BPE.
const known = data.tokenizer;
const utf8 = new TextEncoder(), loose = new TextDecoder("utf-8", { fatal: true });
const pieces = new Map(), ranks = new Map();
let pattern, merged = [];
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
  for (const [id, text] of Object.entries(known.added)) pieces.set(Number(id), utf8.encode(text));
  const space = [...known.spaces].map((char) => `\\u{${char.codePointAt(0).toString(16)}}`).join("");
  pattern = new RegExp(`'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${space}\\p{L}\\p{N}]+|[${space}]+(?![^${space}])|[${space}]+`, "gu");
}

export const bytesOf = (id) => pieces.get(id) ?? new Uint8Array();
/** Return an id's text; of bytes that are no text, \xNN for each. */
export function textOf(id) {
  const bytes = bytesOf(id);
  if (!bytes.length) return `[${id}]`;
  try { return loose.decode(bytes); } catch { return [...bytes].map((b) => (b < 128 ? String.fromCharCode(b) : `\\x${b.toString(16)}`)).join(""); }
}
export const nameOf = (id) => visible(textOf(id));

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
    found.push({ ids, rank: best });
  }
}

export const words = (text) => (known.kind === "char" ? [] : text.toWellFormed().match(pattern) ?? []);
/** Return a text's ids; null stands for characters that a vocabulary of characters lacks. */
export function encode(text) {
  if (known.kind === "char") return [...text.toWellFormed()].map((char) => ranks.get(char) ?? null);
  return words(text).flatMap((word) => steps(word).at(-1).ids);
}

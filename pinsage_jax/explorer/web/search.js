// Search: case and accents do not count, and where nothing matches one typo in a word is forgiven.

const MIN_TYPO_LENGTH = 4;
const UNACCENTED = { ß: "ss", æ: "ae", œ: "oe", ø: "o", đ: "d", ł: "l", ı: "i" };

// Lower-case text without accents.  serving/catalog_search.py does the same.
function fold(text) {
  const low = text.toLowerCase();
  if (/^[\x20-\x7e]*$/.test(low)) return low;
  return low
    .normalize("NFKD")
    .replace(/[\u0300-\u036f]/g, "")
    .replace(/[ßæœøđłı]/g, (letter) => UNACCENTED[letter]);
}

// A pattern of the words that begin like this one with one letter changed, missing, too many,
// or exchanged with the next.
function withOneTypo(word) {
  const letters = [...word].map((letter) => letter.replace(/[^\p{L}\p{N}]/u, "\\$&"));
  const any = "[\\p{L}\\p{N}]";
  const from = (start, end) => letters.slice(start, end).join("");
  const forms = [];
  for (let place = 0; place < letters.length; place++) {
    const before = from(0, place);
    forms.push(before + any + from(place + 1), before + any + from(place));
    if (letters.length > MIN_TYPO_LENGTH) forms.push(before + from(place + 1));
    if (place + 1 < letters.length) {
      forms.push(before + letters[place + 1] + letters[place] + from(place + 2));
    }
  }
  return new RegExp(`^(?:${forms.join("|")})`, "u");
}

// Whether an item matches, by its row: every part in its id or title, given in lower case.
function exactMatcher(parts, ids, titles) {
  return (row) => parts.every((part) => ids[row].includes(part) || titles[row].includes(part));
}

// The same with one typo in each word that is long enough; null if no word has a similar one.
function typoMatcher(parts, ids, titles, words) {
  if (!parts.some((part) => [...part].length >= MIN_TYPO_LENGTH)) return null;
  const tests = parts.map((part) => {
    const exact = (row) => ids[row].includes(part) || titles[row].includes(part);
    if ([...part].length < MIN_TYPO_LENGTH) return exact;
    const pattern = withOneTypo(part);
    const similar = words().filter((word) => pattern.test(word));
    return (row) => exact(row) || similar.some((word) => titles[row].includes(word));
  });
  return (row) => tests.every((test) => test(row));
}

// Differences between two texts, word by word.

const MOST_CELLS = 25_000_000; // of the table below, two bytes each: answers of some 5,000 words

/**
 * Which words of `text` are not those of `reference`, by a longest common subsequence of their words.
 *
 * Returns {pieces: [{text, differs}], n_words, n_different, n_missing, first}, whose pieces joined are `text`; `n_missing`
 * counts words of the reference that `text` lacks, and `first` is the place of the first difference, from 1, or 0 without
 * one. Null for texts that are too long to compare.
 */
export function compareWords(text, reference) {
  const parts = text.split(/(\s+)/).filter(Boolean);
  const words = parts.filter(isWord);
  const others = reference.split(/\s+/).filter(Boolean);
  const kept = commonPlaces(words, others);
  if (kept === null) return null;
  const pieces = [];
  let place = 0;
  for (const part of parts) {
    const differs = isWord(part) && !kept[place++];
    const last = pieces.at(-1);
    if (last && (last.differs === differs || (last.differs && !isWord(part) && kept[place] === false))) last.text += part;
    else pieces.push({ text: part, differs });
  }
  const nKept = kept.filter(Boolean).length;
  const start = sharedStart(words, others);
  const isSame = words.length === others.length && nKept === words.length;
  return {
    pieces,
    n_words: words.length,
    n_different: words.length - nKept,
    n_missing: others.length - nKept,
    first: isSame ? 0 : start + 1,
  };
}

const isWord = (part) => /\S/.test(part);

function sharedStart(a, b) {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** For each of `a`, whether it is in a longest common subsequence with `b`; null where the table would be too large. */
function commonPlaces(a, b) {
  const kept = a.map(() => false);
  const start = sharedStart(a, b);
  let end = 0;
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  kept.fill(true, 0, start);
  kept.fill(true, a.length - end);
  const [n, m] = [a.length - start - end, b.length - start - end];
  if (n * m > MOST_CELLS) return null;
  const width = m + 1;
  const longest = new Uint16Array((n + 1) * width); // [i, j]: of what follows place i of `a` and place j of `b`
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const isEqual = a[start + i] === b[start + j];
      longest[i * width + j] = isEqual
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) {
      kept[start + i] = true;
      i++;
      j++;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return kept;
}

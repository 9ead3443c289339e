// A conflict resolver: a value is a set of lines, and siblings are merged to the union of their lines.
//
// Verdicts must not depend on the order of the siblings, and merging a verdict again must change nothing. So the lines are sorted, and each
// is there once.

// What the plugin calls itself. A binding by name refers to it by this name.
const NAME = "@NAME@";
const VERSION = "0.1.0";

/** @type {import("../witan/plugin").PluginExports} */
export const plugin = {
  describe() {
    return { name: NAME, version: VERSION, hook: "@HOOK@", deterministic: true };
  },

  // Called once on every new instance. This plugin takes no configuration. What is thrown is the error of the result.
  configure(configuration) {
    if (configuration.length > 0) {
      throw [{ at: "", problem: "this plugin takes no configuration; bind it without one" }];
    }
  },
};

const LINE_END = 10;

// Lines are sorted by their bytes, so that every coordinator sorts them alike.
function compare(one, other) {
  const common = Math.min(one.length, other.length);
  for (let at = 0; at < common; at++) {
    if (one[at] !== other[at]) return one[at] - other[at];
  }
  return one.length - other.length;
}

// The lines of a value that are not empty.
function split(value) {
  const lines = [];
  for (let start = 0; start < value.length; ) {
    const found = value.indexOf(LINE_END, start);
    const end = found < 0 ? value.length : found;
    if (end > start) lines.push(value.subarray(start, end));
    start = end + 1;
  }
  return lines;
}

// The union of all lines, each with a line end.
function merge(values) {
  const lines = values.flatMap(split).sort(compare);
  const union = lines.filter((line, index) => index === 0 || compare(lines[index - 1], line) !== 0);
  const merged = new Uint8Array(union.reduce((bytes, line) => bytes + line.length + 1, 0));
  let at = 0;
  for (const line of union) {
    merged.set(line, at);
    at += line.length;
    merged[at++] = LINE_END;
  }
  return merged;
}

/** @type {import("../witan/plugin").ResolverExports} */
export const resolver = {
  resolve(question) {
    const values = question.siblings.map((sibling) => sibling.value);
    // A value with a zero byte is no text. Nothing of it may be lost, so its readers get all siblings.
    if (values.some((value) => value.includes(0))) return { tag: "keep-all" };
    return { tag: "merged", val: merge(values) };
  },

  // The coordinator tries the laws on these before it binds the plugin.
  samples() {
    const bytes = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));
    return ["a\nb\n", "b\nc", "\n\n", "", "no text\0"].map(bytes);
  },
};

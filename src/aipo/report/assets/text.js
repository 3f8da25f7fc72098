// Text that a model wrote, as it is: what would not be seen, or would turn the text around it, stands as an
// escape; what is long is cut, with a button for more.

const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
const FIRST_CHARS = 4000;
const MORE_CHARS = 20000;
const FIRST_TOKENS = 1200;

/** Append text to a node; unseen characters become visible escapes. */
function addText(node, text) {
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > from) node.append(text.slice(from, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    node.append(el("span", { class: "unseen", title: `character U+${code}` }, `\\u{${code}}`));
    from = match.index + match[0].length;
  }
  if (from < text.length) node.append(text.slice(from));
  return node;
}

/** A text with "show more" behind it where it is long; `left` is what the file does not hold. */
function longText(tag, props, text, left) {
  const node = el(tag, { dir: "ltr", ...props });
  const write = (from, size) => {
    let end = Math.min(text.length, from + size);
    if (end < text.length && /[\ud800-\udbff]/.test(text[end - 1])) end += 1;
    addText(node, text.slice(from, end));
    if (end < text.length) {
      const rest = text.length - end;
      const more = moreButton(`show more (${number(rest)} characters)`, () => write(end, MORE_CHARS));
      node.append(more);
    } else if (left) {
      node.append(leftOut(left));
    }
  };
  write(0, FIRST_CHARS);
  return node;
}

function moreButton(label, then) {
  const button = el("button", { type: "button", class: "more" }, label);
  button.addEventListener("click", () => {
    button.remove();
    then();
  });
  return button;
}

function leftOut(characters) {
  return el("span", { class: "left-out" }, `… ${count(characters, "more character")} in rollouts.jsonl`);
}

/** One line of a text, for labels; what cannot be seen stays, to be shown as an escape. */
function oneLine(text, most) {
  const line = text.slice(0, most + 1).replace(/[ \n\t]+/g, " ").trim();
  if (line.length <= most) return line;
  return `${line.slice(0, most).replace(/[\ud800-\udbff]$/, "")}…`; // not half a character
}

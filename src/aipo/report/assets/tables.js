// Tables that can be copied, and lists of terms.

function grid(table) {
  const box = el("div", { class: "table-box" });
  const buttons = [["Copy as Markdown", table.markdown], ["Copy as LaTeX", table.latex]].map(([label, text]) => {
    const button = el("button", { type: "button", class: "small" }, label);
    button.addEventListener("click", () => copy(text, button));
    return button;
  });
  box.append(el("div", { class: "bar" }, addText(el("h3"), table.title), el("span", { class: "buttons" }, buttons)));
  box.append(scrolled(plainTable(table.head, table.rows), table.title));
  for (const note of table.notes) box.append(addText(el("p", { class: "quiet note" }), note));
  return box;
}

/** A table of texts or nodes; the first column names the row. */
function plainTable(head, rows) {
  const cell = (tag, value, props) => (value instanceof Node ? el(tag, props, value) : addText(el(tag, props), String(value)));
  return el(
    "table", {},
    el("thead", {}, el("tr", {}, head.map((name) => cell("th", name, { scope: "col" })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, i) => (i ? cell("td", value, {}) : cell("th", value, { scope: "row" })))))),
  );
}

/** A box that scrolls sideways, also by the keyboard. */
function scrolled(table, name) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, table);
}

function terms(pairs) {
  return el("dl", { class: "terms" }, pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), addText(el("dd"), String(value)))));
}

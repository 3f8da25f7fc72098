// Elements, numbers and the data. Whatever the data says becomes text, never markup: there is no innerHTML here.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** The class of an agent's colours. */
function agentClass(name) {
  const position = Object.keys(DATA.agents || {}).indexOf(name);
  return position < 0 ? "" : `agent-${position}`;
}
const SVG = "http://www.w3.org/2000/svg";

/** Return an element; `props` are attributes, `class` too; handlers are functions named onclick and the like. */
function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

/** A number for people: three significant digits, thousands apart, a real minus. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  let digits = String(Number(size.toPrecision(3)));
  if (Number.isInteger(size) || size >= 1000) digits = Math.round(size).toLocaleString("en");
  else if (size < 0.0001) digits = size.toExponential(1).replace(".0e", "e").replace("-", "−");
  return (value < 0 ? "−" : "") + digits;
}

function share(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value).toFixed(2);
  return (value < 0 && digits !== "0.00" ? "−" : "") + digits;
}

function signed(value) {
  return (value > 0 ? "+" : "") + number(value);
}

function interval(estimate, format) {
  const ends = estimate.low === null ? "" : ` [${format(estimate.low)}, ${format(estimate.high)}]`;
  return format(estimate.value) + ends;
}

function count(many, noun) {
  return `${number(many)} ${noun}${many === 1 ? "" : "s"}`;
}

const TIP = byId("tip");

/** Show lines of text beside a point of the window. */
function tip(x, y, lines) {
  TIP.replaceChildren(...lines.map((line) => (typeof line === "string" ? el("div", {}, line) : line)));
  TIP.hidden = false;
  const box = TIP.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - box.width - 14 : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - box.height - 14 : y + 14;
  TIP.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
  TIP.style.top = `${Math.max(4, top)}px`;
}

function noTip() {
  TIP.hidden = true;
}

/** Copy text and say so on the button. */
async function copy(text, button) {
  const name = button.textContent;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch (refused) {
    done = copyBySelection(text);
  }
  button.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => { button.textContent = name; }, 1200);
}

function copyBySelection(text) {
  const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch (refused) {
    return null; // a browser may refuse storage to files
  }
}

// Line charts as inline SVG: intervals as bands, values on hover and by the arrow keys.

const WIDE = 380, HIGH = 214, LEFT = 44, RIGHT = 12, TOP = 10, BOTTOM = 26;
const SOURCES = { policy: 1, feedback: 1, solo: 1, consulting: 1 };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

/** The look of a line: its colour as a class, its dash; the same method looks the same everywhere. */
function look(index) {
  return { class: `c${index % 8}`, dash: DASHES[Math.floor(index / 8) % DASHES.length] };
}

function lookOf(panel, series, index) {
  if (DATA.methods.length > 1) return look(DATA.methods.indexOf(series.method));
  if (series.label === "before") return { class: "c6", dash: "4 4" };
  if (agentClass(series.label)) return { class: `s-agent ${agentClass(series.label)}`, dash: "" };
  if (SOURCES[series.label] && panel.series.length > 1) return { class: `s-${series.label}`, dash: "" };
  return look(index);
}

function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i += 1) found.push(Number((i * step).toPrecision(10)));
  return found;
}

/** Scales of a chart; k is drawn by its logarithm. */
function scales(panel, shown) {
  const points = shown.flatMap((s) => s.points);
  const logarithmic = panel.x === "k";
  const at = (x) => (logarithmic ? Math.log2(x) : x);
  const xs = points.map((p) => at(p[0]));
  const values = points.flatMap((p) => p.slice(1));
  const alone = Math.min(...xs) === Math.max(...xs); // one step: in the middle
  const x0 = Math.min(...xs) - (alone ? 1 : 0), x1 = Math.max(...xs) + (alone ? 1 : 0);
  const top = Math.max(...values, 0), bottom = Math.min(...values, 0);
  const whole = panel.unit === "share" && top > 0.5;
  const grid = ticks(bottom, whole ? 1 : top || 1, 4);
  const step = grid.length > 1 ? grid[1] - grid[0] : top || 1;
  const y0 = Math.floor(bottom / step + 1e-9) * step, y1 = whole ? 1 : Math.ceil((top || 1) / step - 1e-9) * step;
  return {
    x: (x) => LEFT + ((at(x) - x0) / (x1 - x0)) * (WIDE - LEFT - RIGHT),
    y: (y) => HIGH - BOTTOM - ((y - y0) / (y1 - y0)) * (HIGH - TOP - BOTTOM),
    xTicks: logarithmic || alone ? [...new Set(points.map((p) => p[0]))].sort((a, b) => a - b) : ticks(x0, x1, 5).filter((t) => Number.isInteger(t)),
    yTicks: ticks(y0, y1, 4),
  };
}

function path(points, scale, column) {
  return points.map((p, i) => `${i ? "L" : "M"}${scale.x(p[0]).toFixed(1)} ${scale.y(p[column]).toFixed(1)}`).join("");
}

/** One panel: title, note, legend and the drawing. */
function chart(panel, hidden) {
  const figure = el("figure", { class: "chart" });
  const shown = panel.series.filter((s) => !hidden.has(s.method));
  figure.append(el("figcaption", {}, addText(el("h4", { class: "name" }), panel.title), el("p", { class: "quiet" }, panel.note)));
  if (panel.legend && DATA.methods.length < 2) figure.append(chartLegend(panel));
  if (!shown.length) {
    figure.append(el("p", { class: "quiet empty" }, "No run chosen."));
    return figure;
  }
  figure.append(drawing(panel, shown));
  return figure;
}

function chartLegend(panel) {
  const entries = panel.series.map((series, i) => {
    const style = lookOf(panel, series, i);
    return el("span", { class: "key" }, swatch(style), addText(el("span"), series.label));
  });
  return el("div", { class: "legend" }, entries);
}

function swatch(style) {
  const line = svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, class: `line ${style.class}`, "stroke-dasharray": style.dash || null });
  return svg("svg", { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" }, line);
}

function drawing(panel, shown) {
  const scale = scales(panel, shown);
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", tabindex: 0,
    "aria-label": `${panel.title}. ${spoken(panel, shown)} Arrow keys read values.`,
  });
  drawAxes(picture, panel, scale);
  for (const series of shown) {
    const style = lookOf(panel, series, panel.series.indexOf(series));
    const banded = series.points.filter((p) => p.length === 4);
    if (banded.length > 1) picture.append(svg("path", { d: band(banded, scale), class: `band ${style.class}${shown.length > 3 ? " faint" : ""}` }));
    const d = path(series.points, scale, 1);
    if (series.points.length > 1) picture.append(svg("path", { d, class: `line ${style.class}`, "stroke-dasharray": style.dash || null }));
    if (series.points.length < 13) {
      for (const p of series.points) drawPoint(picture, p, scale, style, shown.length <= 3);
    }
  }
  interactive(picture, panel, shown, scale);
  return picture;
}

function drawPoint(picture, p, scale, style, whiskers) {
  if (p.length === 4 && whiskers) {
    picture.append(svg("line", { x1: scale.x(p[0]), x2: scale.x(p[0]), y1: scale.y(p[2]), y2: scale.y(p[3]), class: `line thin ${style.class}` }));
  }
  picture.append(svg("circle", { cx: scale.x(p[0]), cy: scale.y(p[1]), r: 2.6, class: `dot ${style.class}` }));
}

function band(points, scale) {
  const back = [...points].reverse();
  return `${path(points, scale, 3)}${path(back, scale, 2).replace("M", "L")}Z`;
}

function drawAxes(picture, panel, scale) {
  for (const t of scale.yTicks) {
    picture.append(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: scale.y(t), y2: scale.y(t), class: "grid" }));
    picture.append(svg("text", { x: LEFT - 6, y: scale.y(t) + 3.5, class: "tick end" }, number(t)));
  }
  for (const t of scale.xTicks) {
    picture.append(svg("text", { x: scale.x(t), y: HIGH - 8, class: "tick mid" }, number(t)));
  }
  picture.append(svg("text", { x: 2, y: HIGH - 8, class: "tick unit" }, panel.x));
}

function spoken(panel, shown) {
  return shown.slice(0, 8).map((s) => {
    const last = s.points[s.points.length - 1];
    return `${nameOf(s)}: ${number(last[1])} at ${panel.x} ${number(last[0])}.`;
  }).join(" ");
}

function nameOf(series) {
  const run = DATA.methods.length > 1 ? series.title || series.method : "";
  return [run, series.label].filter(Boolean).join(" · ");
}

function interactive(picture, panel, shown, scale) {
  const xs = [...new Set(shown.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  const rule = svg("line", { y1: TOP, y2: HIGH - BOTTOM, class: "rule", visibility: "hidden" });
  const marks = svg("g", {});
  picture.append(rule, marks);
  let at = xs.length - 1;
  const show = (index, clientX, clientY) => {
    at = Math.max(0, Math.min(xs.length - 1, index));
    const x = xs[at];
    rule.setAttribute("x1", scale.x(x));
    rule.setAttribute("x2", scale.x(x));
    rule.setAttribute("visibility", "visible");
    marks.replaceChildren();
    const rows = [];
    shown.forEach((series) => {
      const style = lookOf(panel, series, panel.series.indexOf(series));
      const p = series.points.find((point) => point[0] === x);
      if (!p) return;
      marks.append(svg("circle", { cx: scale.x(x), cy: scale.y(p[1]), r: 3.4, class: `dot ${style.class}` }));
      const ends = p.length === 4 ? ` [${number(p[2])}, ${number(p[3])}]` : "";
      rows.push(el("div", { class: "row" }, swatch(style), addText(el("span"), `${nameOf(series)} `), el("b", {}, number(p[1]) + ends)));
    });
    tip(clientX, clientY, [el("div", { class: "quiet" }, `${panel.x} ${number(x)}`), ...rows.slice(0, 14)]);
  };
  const hide = () => {
    rule.setAttribute("visibility", "hidden");
    marks.replaceChildren();
    noTip();
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDE;
    const nearest = xs.reduce((best, value, i) => (Math.abs(scale.x(value) - x) < Math.abs(scale.x(xs[best]) - x) ? i : best), 0);
    show(nearest, event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!move) return;
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    const visible = rule.getAttribute("visibility") === "visible";
    const next = visible ? at + move : at;
    show(next, box.left + (scale.x(xs[Math.max(0, Math.min(xs.length - 1, next))]) / WIDE) * box.width, box.top + box.height / 3);
  });
}

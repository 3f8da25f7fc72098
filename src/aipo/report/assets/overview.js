// Summary, curves, results and the value of consultation.

const SERIES = DATA.panels.flatMap((panel) => panel.series);
for (const series of SERIES) {
  series.method = DATA.runs[series.run].method;
  series.title = DATA.runs[series.run].title;
}
const MANY = 8;
const hiddenMethods = new Set(DATA.methods.slice(MANY));

function drawSummary() {
  const names = DATA.methods.slice(0, 4).join(", ") + (DATA.methods.length > 4 ? ", …" : "");
  addText(byId("name"), names);
  byId("made").textContent = `${count(DATA.runs.length, "run")} · made ${DATA.made} by aipo ${DATA.version}`;
  const box = byId("summary");
  const cards = el("div", { class: DATA.runs.length > 4 ? "runs many" : "runs" });
  box.append(cards);
  DATA.runs.forEach((run, i) => cards.append(runSummary(run, i === 0 && DATA.runs.length < 4)));
}

function runSummary(run, open) {
  const s = run.summary;
  const warnings = s.warnings.length;
  const head = el("summary", {}, addText(el("h3"), run.title), el("span", { class: warnings ? "badge warn" : "badge" }, warnings ? count(warnings, "warning") : "no warnings"));
  const body = el("div", { class: "columns" });
  body.append(part("Run", terms(s.facts)));
  body.append(part("Cost", terms(s.cost), s.time.length ? timeBar(s.time) : null));
  if (warnings) body.append(part("Warnings", el("ul", { class: "warnings" }, s.warnings.map((w) => addText(el("li"), w)))));
  const agents = s.agents.map((entry) => el("div", {}, el("p", { class: "quiet" }, `from step ${entry.from_step}`), terms(entry.agents)));
  if (agents.length) body.append(part("Agents", agents));
  const changed = plainTable(["setting", "value", "default"], s.settings.map(([key, old, now]) => [key, now, old]));
  const fold = el("details", { class: "fold" }, el("summary", {}, `${count(s.settings.length, "setting")} that differ from the defaults`), scrolled(changed, "Settings"));
  return el("details", { class: "run", open }, head, body, s.settings.length ? fold : null);
}

function part(title, ...children) {
  return el("div", { class: "part" }, el("h4", {}, title), children);
}

/** Where the time went, as one bar. */
function timeBar(parts) {
  const total = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!total) return null;
  const bar = svg("svg", { viewBox: "0 0 300 14", class: "time", role: "img", "aria-label": "time split", preserveAspectRatio: "none" });
  let x = 0;
  parts.forEach(([, seconds], i) => {
    const width = (seconds / total) * 300;
    bar.append(svg("rect", { x, y: 0, width: Math.max(0, width - 1), height: 14, class: `bar c${i}` }));
    x += width;
  });
  const keys = parts.filter(([, s]) => s).map(([name, seconds]) => {
    const i = parts.findIndex(([n]) => n === name);
    return el("span", { class: "key" }, el("i", { class: `chip c${i}` }), `${name} ${duration(seconds)} (${Math.round((100 * seconds) / total)} %)`);
  });
  return el("div", { class: "time-box" }, bar, el("div", { class: "legend" }, keys));
}

function duration(seconds) {
  if (seconds < 90) return `${number(Number(seconds.toPrecision(2)))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${number(Number((seconds / 3600).toFixed(1)))} h`;
}

function drawCurves() {
  const box = byId("curves");
  const charts = el("div", {});
  const all = [...DATA.accuracy, ...DATA.boundary, ...DATA.panels];
  const groups = [...new Set(all.map((panel) => panel.group))];
  const draw = () => charts.replaceChildren(...groups.map((group) => el("div", { class: "chart-group" },
    el("h3", { class: "over" }, group),
    el("div", { class: "charts" }, all.filter((panel) => panel.group === group).map((panel) => chart(panel, hiddenMethods))))));
  if (DATA.methods.length > 1) box.append(methodLegend(draw));
  box.append(all.length ? charts : el("p", { class: "quiet" }, "No metrics or evaluations are recorded."));
  draw();
}

/** The common legend of several runs; a press hides a method or shows it again. */
function methodLegend(draw) {
  const buttons = DATA.methods.map((method, i) => {
    const button = el("button", { type: "button", class: "key", "aria-pressed": String(!hiddenMethods.has(method)) }, swatch(look(i)), addText(el("span"), method));
    button.addEventListener("click", () => {
      if (!hiddenMethods.delete(method)) hiddenMethods.add(method);
      button.setAttribute("aria-pressed", String(!hiddenMethods.has(method)));
      draw();
    });
    return button;
  });
  const words = DATA.methods.length > MANY ? `The first ${MANY} are shown; press a name to show or hide it.` : "Press a name to hide or show it.";
  return el("div", { class: "methods", role: "group", "aria-label": "Methods" }, buttons, el("p", { class: "quiet" }, words));
}

function drawResults() {
  const box = byId("results");
  const { tables, problems } = DATA.results;
  tables.forEach((table) => box.append(grid(table)));
  problems.forEach((problem) => box.append(addText(el("p", { class: "warnings" }), problem)));
  if (!tables.length && !problems.length) {
    box.append(el("p", { class: "quiet" }, "Nothing was evaluated: ", el("code", {}, "aipo evaluate"), ", or evaluate.at_steps in the recipe, fills this part."));
  }
}

function drawValue() {
  const box = byId("consultation");
  const told = DATA.runs.filter((run) => run.value.length || run.requests.length);
  if (!told.length) {
    box.append(el("p", { class: "quiet" }, "No rollout that could consult is recorded."));
    return;
  }
  box.append(el("p", { class: "quiet" },
    "Success of recorded training rollouts with and without an agent, in the groups that have both. The policy chose when to ask, and asks where it is stuck: a difference is what was seen, not what an agent causes. 95 % intervals over groups."));
  told.forEach((run, i) => {
    const body = [worthTable(run), requestTable(run)];
    if (told.length === 1) box.append(...body.filter(Boolean));
    else box.append(el("details", { class: "run", open: i === 0 }, el("summary", {}, addText(el("h3"), run.title)), body));
  });
}

function worthTable(run) {
  if (!run.value.length) return null;
  const rows = run.value.map((w) => [
    el("span", { class: `agent ${agentClass(w.what)}` }, w.what), number(w.groups),
    `${interval(w.share_with, share)} (${number(w.rollouts_with)})`,
    `${interval(w.share_without, share)} (${number(w.rollouts_without)})`,
    `${w.difference.value > 0 ? "+" : ""}${interval(w.difference, share)}`, forest(w.difference),
    w.p_value === null ? "–" : w.p_value < 0.001 ? "< .001" : w.p_value.toFixed(3),
  ]);
  return scrolled(plainTable(["with", "groups", "success with (rollouts)", "success without", "difference", "−1 … +1", "p"], rows), "Value of consultation");
}

/** An interval on a line from -1 to 1. */
function forest(d) {
  const x = (value) => 70 + value * 66;
  const picture = svg("svg", { viewBox: "0 0 140 16", width: 140, height: 16, role: "img", "aria-label": interval(d, share) });
  picture.append(svg("line", { x1: 70, x2: 70, y1: 1, y2: 15, class: "grid strong" }), svg("line", { x1: 4, x2: 136, y1: 8, y2: 8, class: "grid" }));
  if (d.low !== null) picture.append(svg("line", { x1: x(Math.max(-1, d.low)), x2: x(Math.min(1, d.high)), y1: 8, y2: 8, class: "line c0" }));
  if (d.value !== null) picture.append(svg("circle", { cx: x(d.value), cy: 8, r: 3.4, class: "dot c0" }));
  return picture;
}

function requestTable(run) {
  if (!run.requests.length) return null;
  const rows = run.requests.map((r) => [
    longText("span", { class: "said" }, r.request || "(empty)", 0), el("span", { class: `agent ${agentClass(r.agent)}` }, r.agent), number(r.times),
    share(r.times ? r.answered / r.times : null), share(r.graded ? r.correct / r.graded : null),
  ]);
  return el("div", {}, el("h4", {}, `Asked most, of ${count(run.distinct_requests, "different request")}`),
    scrolled(plainTable(["request", "agent", "times", "answered", "rollout correct"], rows), "Requests asked most"));
}

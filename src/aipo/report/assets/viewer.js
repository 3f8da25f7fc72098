// The rollout viewer: filters, search, the list, siblings, and an address for each rollout.

const ITEMS = [];
DATA.runs.forEach((run, r) => run.groups.forEach((group) => {
  const members = [];
  group.rollouts.forEach((rollout) => {
    const item = { run, r, group, rollout, members };
    members.push(item);
    ITEMS.push(item);
  });
}));
const ADDRESSES = new Map();
for (const item of ITEMS) {
  // A problem may be drawn twice in a step: the second one's address says so.
  // Nor can an address hold half a character.
  const base = `${item.run.title}/${item.group.step}/${item.rollout.id}`.replace(/\p{Surrogate}/gu, "\ufffd");
  let address = base;
  for (let i = 2; ADDRESSES.has(address); i += 1) address = `${base}/${i}`;
  ADDRESSES.set(address, item);
  item.address = address;
}
const LISTED = 200;
const state = { run: "", verdict: "", condition: "", agent: "", outcome: "", step: "", problem: "", search: "", chosen: null, beside: false, listed: LISTED };
let found = [];
const parts = {};

function haystack(item) {
  if (!item.words) {
    const { rollout, group } = item;
    const asked = rollout.consultations.flatMap((c) => [c.request.text, c.reply.text, c.detail]);
    item.words = [rollout.id, group.text.text, group.gold, rollout.reason, ...rollout.segments.map((s) => s.text), ...asked].join("\n").toLowerCase();
  }
  return item.words;
}

function matches(item) {
  const { rollout, group } = item;
  const asked = rollout.consultations;
  return (!state.run || item.run.title === state.run)
    && (!state.verdict || rollout.verdict === state.verdict)
    && (!state.condition || rollout.condition === state.condition)
    && (!state.step || String(group.step) === state.step)
    && (!state.problem || group.problem === state.problem)
    && (!state.agent || (state.agent === "no agent" ? !asked.length : asked.some((c) => (c.agent || "malformed") === state.agent)))
    && (!state.outcome || asked.some((c) => c.outcome === state.outcome))
    && (!state.search || haystack(item).includes(state.search));
}

function drawViewer() {
  const box = byId("rollouts");
  if (!ITEMS.length) {
    box.append(el("p", { class: "quiet" }, "No rollout is recorded."));
    return;
  }
  const recorded = DATA.runs.reduce((sum, run) => sum + run.recorded.rollouts, 0);
  const sample = `A sample: ${number(ITEMS.length)} of ${count(recorded, "recorded rollout")}, whole groups, spread evenly over the recorded steps. All are in rollouts.jsonl; `;
  box.append(ITEMS.length < recorded
    ? el("p", { class: "quiet" }, sample, el("code", {}, "--rollouts"), " takes more.")
    : el("p", { class: "quiet" }, `All ${count(recorded, "recorded rollout")}.`));
  parts.filters = filters();
  parts.count = el("p", { class: "quiet", role: "status" });
  parts.list = el("ul", { class: "list", "aria-label": "Rollouts" });
  parts.detail = el("div", { class: "detail" });
  box.append(parts.filters, el("div", { class: "viewer" }, el("div", { class: "side" }, parts.count, parts.list), parts.detail));
  box.append(el("p", { class: "quiet note" }, "Keys: / search, j and k next and previous rollout, [ and ] siblings, s side by side."));
  parts.list.addEventListener("keydown", walkList);
  document.addEventListener("keydown", shortcut);
  addEventListener("hashchange", () => { if (fromAddress()) toDetail(); });
  refresh();
  if (fromAddress()) toDetail();
  else choose(found[0]);
}

function filters() {
  const of = (values) => [...new Set(values)].filter((v) => v !== null && v !== undefined).map(String).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const asked = ITEMS.flatMap((item) => item.rollout.consultations);
  const form = el("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() });
  const add = (name, label, values) => {
    if (values.length < 2 && name !== "verdict") return;
    const select = el("select", { name }, el("option", { value: "" }, "all"), values.map((v) => addText(el("option", { value: v }), oneLine(v, 60))));
    select.addEventListener("change", () => { state[name] = select.value; refresh(); });
    form.append(el("label", {}, el("span", {}, label), select));
  };
  const search = el("input", { type: "search", name: "search", placeholder: "text, request, reply …", autocomplete: "off", spellcheck: "false" });
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.search = search.value.toLowerCase(); refresh(); }, 120);
  });
  parts.search = search;
  form.append(el("label", { class: "wide" }, el("span", {}, "Search"), search));
  add("run", "Run", of(DATA.runs.map((run) => run.title)));
  add("verdict", "Verdict", of(ITEMS.map((i) => i.rollout.verdict)));
  add("condition", "Condition", of(ITEMS.map((i) => i.rollout.condition)));
  add("agent", "Agent", [...of(asked.map((c) => c.agent || "malformed")), "no agent"]);
  add("outcome", "Outcome", of(asked.map((c) => c.outcome)));
  add("step", "Step", of(ITEMS.map((i) => i.group.step)));
  add("problem", "Problem", of(ITEMS.map((i) => i.group.problem)));
  form.append(el("label", {}, el("span", {}, "Shade"), shadeSelect()));
  form.append(el("button", { type: "reset", class: "small", onclick: () => setTimeout(clear) }, "Clear"));
  return form;
}

function shadeSelect() {
  const select = el("select", { name: "shade" }, el("option", { value: "source" }, "source"), el("option", { value: "p" }, "probability"));
  select.addEventListener("change", () => byId("rollouts").classList.toggle("by-p", select.value === "p"));
  return select;
}

function clear() {
  for (const name of ["run", "verdict", "condition", "agent", "outcome", "step", "problem", "search"]) state[name] = "";
  byId("rollouts").classList.remove("by-p");
  refresh();
}

/** Filter anew and draw the list. */
function refresh() {
  found = ITEMS.filter(matches);
  state.listed = LISTED;
  parts.count.textContent = `${number(found.length)} of ${count(ITEMS.length, "rollout")} shown`;
  drawList();
}

function drawList() {
  const rows = found.slice(0, state.listed).map((item) => {
    const asked = item.rollout.consultations.length;
    const button = el("button", { type: "button", class: "item", "aria-current": item === state.chosen ? "true" : null, onclick: () => choose(item, true) },
      verdictMark(item.rollout.verdict),
      el("span", { class: "lines" },
        addText(el("span", { class: "id" }), oneLine(item.rollout.id, 80)),
        addText(el("span", { class: "quiet" }), `step ${item.group.step} · ${item.rollout.condition}${asked ? ` · ${count(asked, "consultation")}` : ""}${DATA.runs.length > 1 ? ` · ${item.run.title}` : ""}`)));
    button.item = item;
    return el("li", {}, button);
  });
  if (found.length > state.listed) {
    rows.push(el("li", {}, moreButton(`show more (${number(found.length - state.listed)})`, () => { state.listed += LISTED; drawList(); })));
  }
  parts.list.replaceChildren(...rows);
}

function choose(item, byHand) {
  if (!item) {
    parts.detail.replaceChildren(el("p", { class: "quiet" }, "No rollout matches."));
    return;
  }
  state.chosen = item;
  for (const button of parts.list.querySelectorAll("button.item")) {
    if (button.item === item) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  if (byHand) history.replaceState(null, "", `#rollout=${encodeURIComponent(item.address)}`);
  drawDetail();
}

function drawDetail() {
  noTip();
  const item = state.chosen;
  const { group } = item;
  const link = el("button", { type: "button", class: "small" }, "Copy link");
  link.addEventListener("click", () => { choose(item, true); copy(location.href, link); });
  const beside = el("button", { type: "button", class: "small", "aria-pressed": String(state.beside) }, "Side by side");
  beside.addEventListener("click", () => { state.beside = !state.beside; drawDetail(); });
  const problem = el("div", { class: "problem" },
    el("div", { class: "bar" }, el("h3", { class: "over" }, "Problem"), el("span", { class: "buttons" }, beside, link)),
    longText("p", { class: "words" }, group.text.text, group.text.more),
    el("p", { class: "quiet" }, "gold: ", addText(el("b"), oneLine(group.gold, 200))));
  const siblings = el("div", { class: "siblings", role: "group", "aria-label": "Siblings of the group" }, item.members.map((m) => siblingButton(m, item)));
  const body = state.beside
    ? el("div", { class: "beside" }, item.members.map((m) => rolloutView(m, true)))
    : rolloutView(item, false);
  parts.detail.replaceChildren(problem, siblings, body);
}

function siblingButton(member, item) {
  const id = member.rollout.id;
  const name = id.includes("#") ? id.slice(id.lastIndexOf("#")) : id;
  return el("button", {
    type: "button", class: `sibling ${member.rollout.condition}`, "aria-pressed": String(member === item),
    title: `${member.rollout.condition}, ${member.rollout.verdict}`, onclick: () => choose(member, true),
  }, verdictMark(member.rollout.verdict), addText(el("span"), oneLine(name, 12)), el("span", { class: "quiet" }, member.rollout.condition === "solo" ? "solo" : `${member.rollout.consultations.length} asked`));
}

/** Choose the rollout that the address names, if it names one. */
function fromAddress() {
  const match = /^#rollout=(.*)$/s.exec(location.hash);
  if (!match) return false;
  let address = "";
  try {
    address = decodeURIComponent(match[1]);
  } catch (malformed) {
    return false;
  }
  const item = ADDRESSES.get(address);
  if (item) choose(item);
  else parts.detail.replaceChildren(el("p", { class: "warnings" }, "The rollout that this address names is not in this report's sample."));
  return true;
}

function toDetail() {
  byId("rollouts").scrollIntoView();
}

function walkList(event) {
  const buttons = [...parts.list.querySelectorAll("button.item")];
  const at = buttons.indexOf(document.activeElement);
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || next === undefined || !buttons[next]) return;
  event.preventDefault();
  buttons[next].focus();
  choose(buttons[next].item, true);
}

function shortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const among = (items, by) => items[(items.indexOf(state.chosen) + by + items.length) % items.length];
  if (event.key === "/") {
    event.preventDefault();
    parts.search.focus();
  } else if ("jk".includes(event.key) && found.length) choose(among(found, event.key === "j" ? 1 : -1), true);
  else if ("[]".includes(event.key) && state.chosen) choose(among(state.chosen.members, event.key === "]" ? 1 : -1), true);
  else if (event.key === "s" && state.chosen) { state.beside = !state.beside; drawDetail(); }
}

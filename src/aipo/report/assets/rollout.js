// One rollout as text by source, with its consultations in place.

const VERDICTS = { correct: "✓", incorrect: "✗", ungraded: "?" };

function verdictMark(verdict) {
  return el("span", { class: `verdict ${verdict}` }, el("span", { "aria-hidden": "true" }, VERDICTS[verdict] || "?"), el("span", { class: "said-only" }, verdict));
}

/** The whole of a rollout; `brief` leaves out what siblings share. */
function rolloutView(item, brief) {
  const { rollout, group, run } = item;
  const box = el("article", { class: "rollout", "aria-label": `Rollout ${rollout.id}` });
  box.append(rolloutHead(item, brief));
  const text = el("div", { class: "text", tabindex: 0, role: "group", "aria-label": "Text of the rollout; arrow keys read tokens", dir: "ltr" });
  const prompt = rollout.segments.find((s) => s.source === "prompt");
  if (prompt && !brief) {
    text.append(el("details", { class: "prompt" }, el("summary", {}, `prompt, ${count(prompt.tokens, "token")}`), longText("div", {}, prompt.text, prompt.more)));
  }
  rollout.segments.forEach((segment, index) => {
    if (segment.source === "prompt") return;
    const consultation = rollout.consultations.find((c) => c.segment === index);
    if (consultation || (segment.source !== "policy" && !segment.opened)) text.append(consultationCard(consultation, segment, item));
    else text.append(segmentText("span", segment, item));
  });
  rollout.consultations.filter((c) => c.segment === null).forEach((c) => text.append(consultationCard(c, null, item)));
  if (rollout.more_consultations) text.append(el("p", { class: "left-out" }, `… ${count(rollout.more_consultations, "more consultation")} in rollouts.jsonl`));
  if (!rollout.segments.length) text.append(el("p", { class: "quiet" }, "The engine failed: there is no text."));
  readable(text, item);
  box.append(text);
  if (!brief) box.append(el("p", { class: "quiet note" }, tokenNote(rollout, run)));
  return box;
}

function rolloutHead(item, brief) {
  const { rollout, group } = item;
  const title = brief ? rollout.id.slice(rollout.id.lastIndexOf("#")) : rollout.id;
  const facts = [rollout.condition, `step ${group.step}`, group.stratum, rollout.stop && `ended: ${rollout.stop}`];
  const reward = rollout.reward === null || rollout.reward === undefined ? null : `reward ${rollout.reward}`;
  const credit = rollout.credit[0] === null ? null : `advantage: policy ${signed(rollout.credit[0])}, feedback ${signed(rollout.credit[1])}`;
  const wrong = rollout.reason && rollout.verdict !== "correct" ? `because: ${oneLine(rollout.reason, 160)}` : null;
  return el("header", {},
    el("h3", {}, verdictMark(rollout.verdict), addText(el("span"), title)),
    el("p", { class: "quiet" }, addText(el("span"), [...facts, reward, credit, wrong].filter(Boolean).join(" · "))));
}

function tokenNote(rollout, run) {
  const policy = rollout.segments.filter((s) => s.source === "policy");
  const known = policy.length && policy.every((s) => s.cuts);
  const text = policy.length && !known ? " No tokenizer of this run was found that spells these texts: probabilities are told segment by segment." : "";
  return `p: of POLICY tokens by the sampler, when it wrote them; of FEEDBACK by the policy that learnt from it, where that is recorded. ${run.rule ? `FEEDBACK is weighed with ${run.rule}.` : ""}${text}`;
}

/** A segment's text, token by token where the tokens are known. */
function segmentText(tag, segment, item) {
  const node = el(tag, { class: `segment ${segment.source}${segment.opened ? " opened" : ""}`, dir: "ltr" });
  if (!segment.cuts) {
    const whole = longText("span", { class: "token whole" }, segment.text, segment.more);
    whole.token = { segment, index: null };
    node.append(whole);
    return node;
  }
  const write = (from, offset) => {
    const end = Math.min(segment.cuts.length, from + FIRST_TOKENS);
    let at = offset;
    for (let i = from; i < end; i += 1) {
      const span = addText(el("span", { class: `token ${shade(segment, i)}` }), segment.text.slice(at, at + segment.cuts[i]));
      span.token = { segment, index: i };
      at += segment.cuts[i];
      node.append(span);
    }
    if (end < segment.cuts.length) {
      node.append(moreButton(`show more (${number(segment.cuts.length - end)} tokens)`, () => write(end, at)));
    }
  };
  write(0, 0);
  return node;
}

/** The class of a token's probability: p0 is certain, p4 was drawn against the odds. */
function shade(segment, index) {
  if (!segment.nats) return "";
  const p = Math.exp(-segment.nats[index] / 1000);
  return `p${[0.9, 0.5, 0.2, 0.05].filter((limit) => p < limit).length}`;
}

/** What is known of a token, as lines of a tooltip. */
function tokenFacts(token, item) {
  const { segment, index } = token;
  const { rollout, run } = item;
  const lines = [];
  if (segment.nats && index !== null) {
    const nats = segment.nats[index] / 1000;
    lines.push(`p ${number(Math.exp(-nats))} · log p ${nats ? "−" : ""}${nats.toFixed(3)}`);
  } else if (segment.nats && segment.nats.length) {
    const mean = segment.nats.reduce((sum, n) => sum + n, 0) / segment.nats.length / 1000;
    lines.push(`${count(segment.tokens, "token")} · mean log p −${mean.toFixed(3)} · smallest p ${number(Math.exp(-Math.max(...segment.nats) / 1000))}`);
  } else {
    lines.push(segment.source === "feedback" ? "p under the policy: not recorded" : "not sampled by the policy");
  }
  const credit = rollout.credit[segment.source === "feedback" ? 1 : 0];
  if (segment.source === "policy") lines.push(credit === null ? "not credited" : `A ${signed(credit)} · coefficient 1 at the first update`);
  if (segment.weights && index !== null && credit > 0) lines.push(`W ${number(segment.weights[index])}`);
  if (segment.source === "feedback") lines.push(credit === null ? "not credited" : `A ${signed(credit)} · ${run.rule || "coefficient unknown"}`);
  if (segment.source === "scaffold") lines.push("a notice of the system: never trained");
  return [el("div", { class: "quiet" }, `${segment.source}${index === null ? "" : ` · token ${index + 1} of ${segment.tokens}`}`), ...lines];
}

/** Hover, and the arrow keys, tell what is known of each token. */
function readable(text, item) {
  let current = null;
  const say = (span, x, y) => {
    if (current) current.classList.remove("current");
    current = span;
    span.classList.add("current");
    tip(x, y, tokenFacts(span.token, item));
  };
  const stop = () => {
    if (current) current.classList.remove("current");
    noTip();
  };
  text.addEventListener("pointermove", (event) => {
    const span = event.target.closest(".token");
    if (span && span.token) say(span, event.clientX, event.clientY);
    else stop();
  });
  text.addEventListener("pointerleave", stop);
  text.addEventListener("blur", stop);
  text.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") stop();
    if (!move || event.target !== text) return;
    event.preventDefault();
    const spans = [...text.querySelectorAll(".token")].filter((span) => span.offsetParent !== null);
    const next = spans[Math.max(0, Math.min(spans.length - 1, spans.indexOf(current) + move))];
    if (!next) return;
    next.scrollIntoView({ block: "nearest" });
    const box = next.getBoundingClientRect();
    say(next, box.left, box.bottom);
  });
}

/** A consultation, folded: who was asked what, what came of it, and all the rest inside. */
function consultationCard(consultation, segment, item) {
  const c = consultation;
  const who = c ? `${c.agent || "no agent"}${c.elicited ? ", elicited" : ""}` : "not asked for";
  const said = segment ? oneLine(segment.text, 300) : "what it would have been told did not fit";
  const head = el("summary", {},
    el("span", { class: "who" }, who),
    c && addText(el("span", { class: "request" }), oneLine(c.request.text, 160)),
    el("span", { class: `outcome ${c ? c.outcome : ""}` }, c ? c.outcome.replace(/_/g, " ") : ""),
    addText(el("span", { class: `said ${segment ? segment.source : ""}`, dir: "ltr" }), said));
  const card = el("details", { class: c && c.agent ? `consultation ${agentClass(c.agent)}` : "consultation none" }, head);
  // Filled when it is opened first: a rollout may hold many, and each may be long.
  card.addEventListener("toggle", () => {
    if (card.open && card.childElementCount === 1) card.append(consultationBody(c, segment, item));
  });
  return card;
}

function consultationBody(c, segment, item) {
  const body = el("div", { class: "inside" });
  if (c) body.append(el("h4", {}, "Request"), longText("p", { class: "words" }, c.request.text || "(empty)", c.request.more));
  if (segment) body.append(el("h4", {}, segment.source === "feedback" ? "Read by the policy" : "Notice"), segmentText("p", segment, item));
  if (!c) return body;
  if (c.reply.text && (!segment || !segment.text.includes(c.reply.text))) {
    body.append(el("h4", {}, "Reply"), longText("p", { class: "words" }, c.reply.text, c.reply.more));
  }
  const tokens = [c.reply_tokens && count(c.reply_tokens, "token"), c.read && `agent read ${number(c.read)}`, c.wrote && `agent wrote ${number(c.wrote)}`].filter(Boolean).join(", ");
  body.append(terms([
    ["outcome", c.outcome.replace(/_/g, " ") + (c.detail ? `: ${c.detail}` : "") + (c.failure ? ` (${c.failure})` : "")],
    ["latency", c.latency_s === null ? "not recorded" : `${number(c.latency_s)} s`],
    tokens ? ["tokens", tokens] : null,
    c.cost ? ["cost", number(c.cost)] : null,
    c.leaked ? ["leak", "stated the final answer"] : null,
    c.elicited ? ["elicited", "the system opened this request"] : null,
  ].filter(Boolean)));
  return body;
}

"use strict";
// The gallery: every question has a light shell in the list; pictures and answers are put into those near the screen.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // ---- theme
  const themeButton = byId("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const nameTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; themeButton.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`); };
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* storage may be off */ }
    nameTheme();
  });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // ---- one metric at a time in the tables by group
  for (const button of document.querySelectorAll("[data-metric]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-metric]")) other.setAttribute("aria-pressed", String(other === button));
      for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== button.dataset.metric;
    });
  }

  const list = byId("list");
  if (!list) return;
  const data = JSON.parse(byId("data").textContent);
  const { questions, models, left, right, metrics, episodes } = data;

  const el = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // ---- pictures of an episode, read when first wanted
  const pictures = new Map();
  const framesOf = (episode) => {
    if (!pictures.has(episode)) {
      const held = byId(`pictures-${episode}`);
      const shown = held ? JSON.parse(held.textContent) : episodes[episode].frames;
      pictures.set(episode, shown.map((source) => (source && held ? `data:image/jpeg;base64,${source}` : source)));
    }
    return pictures.get(episode);
  };

  // ---- scores
  let metric = 0;
  const scoreOf = (question, model) => (question.m[model] ? question.m[model][metric] : null) ?? null;
  const changeOf = (question) => {
    const before = scoreOf(question, left);
    const after = scoreOf(question, right);
    return before === null || after === null ? null : after - before;
  };
  const plain = (text) => (text ?? "").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
  const differs = (question) => question.p[left] !== null && question.p[right] !== null && plain(question.p[left]) !== plain(question.p[right]);
  const verdictOf = (question) => {
    const change = changeOf(question);
    if (change === null) return "unknown";
    return change > 0.005 ? "better" : change < -0.005 ? "worse" : "same";
  };
  const BADGES = { better: "▲ better", worse: "▼ worse", same: "= same", unknown: "not compared" };
  const shown = (value) => (value === null ? "—" : Number.isInteger(value) ? String(value) : value.toFixed(1));

  // ---- shells
  const cards = questions.map((question, index) => {
    const card = el("article", "card");
    card.id = `card-${index}`;
    card.tabIndex = -1;
    const heading = el("h3");
    heading.id = `question-${index}`;
    heading.dir = "auto";
    heading.textContent = question.q;
    card.setAttribute("aria-labelledby", heading.id);
    card.append(heading);
    card._index = index;
    return card;
  });

  function badge(question) {
    const verdict = verdictOf(question);
    return el("span", `badge ${verdict}`, BADGES[verdict]);
  }

  function answerBlock(label, text, score, kind) {
    const block = el("div", `answer ${kind}`);
    const head = el("p", "who");
    head.append(el("span", "", label));
    if (score !== undefined) {
      const value = el("span", "points", shown(score));
      value.title = score === null ? "no score" : `${metrics[metric].label} ${shown(score)} of 100`;
      head.append(value);
    }
    block.append(head);
    const words = el("div", "words", text === null ? "no answer yet" : text === "" ? "(empty)" : text);
    words.dir = "auto";
    if (text === null || text === "") words.classList.add("none");
    block.append(words);
    if (text && text.length > 260) {
      words.classList.add("long");
      const more = el("button", "link", "Show all");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      more.addEventListener("click", () => {
        const open = words.classList.toggle("long") === false;
        more.textContent = open ? "Show less" : "Show all";
        more.setAttribute("aria-expanded", String(open));
      });
      block.append(more);
    }
    return block;
  }

  function fill(card) {
    if (card._full) return;
    card._full = true;
    const question = questions[card._index];
    const episode = episodes[question.e];
    const body = el("div", "body");
    const strip = el("div", "frames");
    const sources = framesOf(question.e);
    sources.forEach((source, position) => {
      const name = `Frame ${position + 1} of ${sources.length}`;
      if (!source) {
        strip.append(el("span", "gone", "picture missing"));
        return;
      }
      const button = el("button", "frame");
      button.type = "button";
      const image = el("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = `${name}: enlarge`;
      image.addEventListener("error", () => {
        sources[position] = null; // the enlarged view steps over it
        button.replaceWith(el("span", "gone", "picture missing"));
      }, { once: true });
      image.src = source;
      button.append(image);
      button.addEventListener("click", () => openViewer(card._index, position, button));
      strip.append(button);
    });
    if (!sources.length) strip.append(el("p", "gone wide", data.pictures === "none" ? "Pictures are left out of this page (report.frames: none)." : "No pictures of this episode."));
    strip.style.setProperty("--count", Math.max(1, Math.min(8, sources.length)));

    const meta = el("p", "meta");
    meta.append(badge(question), el("span", "", data.categories[question.c]), el("span", "", data.sources[question.s]));
    const room = el("span", "room", episode.id);
    meta.append(room);
    if (episode.origin) meta.append(el("span", "", episode.origin));
    const link = el("a", "", "Link");
    link.href = `#q=${encodeURIComponent(question.id)}`;
    link.setAttribute("aria-label", `Link to this question: ${question.q.slice(0, 120)}`);
    meta.append(link);

    const answers = el("div", "answers");
    const accepted = question.a.length ? question.a.join("  ·  ") : null;
    answers.append(answerBlock(question.a.length > 1 ? "Accepted answers" : "Accepted answer", accepted, undefined, "gold"));
    models.forEach((model, position) => {
      const kind = position === right ? "right" : position === left ? "left" : "other";
      answers.append(answerBlock(model.label, question.p[position], scoreOf(question, position), kind));
    });
    body.append(strip, answers, meta);
    card.append(body);
  }

  function empty(card) {
    if (!card._full || card.contains(document.activeElement)) return;
    card.style.containIntrinsicBlockSize = `auto ${card.offsetHeight}px`;
    card._full = false;
    card.querySelector(".body")?.remove();
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) fill(entry.target);
      else if (entry.target._full && !printing) entry.target._far = true;
    }
  }, { rootMargin: "900px 0px" });
  // what is far away is emptied in quiet moments, so that a scroll through thousands stays light
  const keeper = new IntersectionObserver((entries) => {
    if (printing) return;
    for (const entry of entries) if (!entry.isIntersecting) empty(entry.target);
  }, { rootMargin: "6000px 0px" });

  // ---- filter and order
  const field = { text: byId("f-text"), category: byId("f-category"), source: byId("f-source"), change: byId("f-change"), metric: byId("f-metric"), sort: byId("f-sort") };
  const count = byId("count");
  let haystacks = null;
  const haystackOf = (index) => {
    haystacks ??= questions.map((q) => [q.q, ...q.a, ...q.p, q.id, episodes[q.e].id, episodes[q.e].space].filter(Boolean).join("\n").toLowerCase());
    return haystacks[index];
  };
  let visible = cards.map((_, index) => index);
  let attached = [];

  function chosen() {
    const words = field.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const category = field.category.value;
    const source = field.source.value;
    const change = field.change.value;
    const found = [];
    for (let index = 0; index < questions.length; index += 1) {
      const question = questions[index];
      if (category !== "" && question.c !== Number(category)) continue;
      if (source !== "" && question.s !== Number(source)) continue;
      if (change === "disagree" ? !differs(question) : change && verdictOf(question) !== change) continue;
      if (words.length) {
        const text = haystackOf(index);
        if (!words.every((word) => text.includes(word))) continue;
      }
      found.push(index);
    }
    return found;
  }

  const ORDERS = {
    up: (q) => -(changeOf(q) ?? -Infinity),
    down: (q) => changeOf(q) ?? Infinity,
    low: (q) => scoreOf(q, right) ?? Infinity,
  };

  function show(now) {
    visible = now;
    const order = ORDERS[field.sort.value];
    if (order) {
      const keys = new Map(visible.map((index) => [index, order(questions[index])]));
      visible.sort((a, b) => (keys.get(a) === keys.get(b) ? a - b : keys.get(a) < keys.get(b) ? -1 : 1));
    }
    const wanted = visible.map((index) => cards[index]);
    if (wanted.length !== attached.length || wanted.some((card, position) => card !== attached[position])) {
      list.replaceChildren(...wanted);
      wanted.forEach((card, position) => {
        card.setAttribute("aria-posinset", position + 1);
        card.setAttribute("aria-setsize", wanted.length);
      });
    }
    const kept = new Set(wanted);
    for (const card of attached) if (!kept.has(card)) { watcher.unobserve(card); keeper.unobserve(card); }
    const before = new Set(attached);
    for (const card of wanted) if (!before.has(card)) { watcher.observe(card); keeper.observe(card); }
    attached = wanted;
    const tally = { better: 0, worse: 0, same: 0, unknown: 0 };
    for (const index of visible) tally[verdictOf(questions[index])] += 1;
    const parts = ["better", "worse", "same"].filter((name) => tally[name]).map((name) => `${tally[name].toLocaleString("en")} ${name}`);
    count.textContent = `${visible.length.toLocaleString("en")} of ${questions.length.toLocaleString("en")} question${questions.length === 1 ? "" : "s"}${parts.length ? `: ${parts.join(", ")}` : ""}${visible.length ? "" : ". Nothing fits these filters."}`;
    list.setAttribute("aria-busy", "false");
  }

  // every way to another score leads through here (the field, Reset, a link): what shows the old one is made anew
  function refresh() {
    const started = performance.now();
    const wanted = Number(field.metric.value) || 0;
    const stale = wanted === metric ? [] : cards.filter((card) => card._full);
    metric = wanted;
    for (const card of stale) { card._full = false; card.querySelector(".body")?.remove(); }
    show(chosen());
    // the observer tells only of changes, and these may stay where they are
    const kept = new Set(attached);
    for (const card of stale) if (kept.has(card)) { watcher.unobserve(card); watcher.observe(card); }
    root.dataset.filterMs = (performance.now() - started).toFixed(1);
  }

  let waiting = 0;
  field.text.addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(refresh); });
  for (const name of ["category", "source", "change", "metric", "sort"]) field[name].addEventListener("change", refresh);
  const form = field.text.form;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refresh));
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !viewer.open) {
      event.preventDefault();
      field.text.focus();
    }
  });

  // ---- link to one question
  function follow() {
    const match = /^#q=(.*)$/.exec(location.hash);
    if (!match) return;
    let wanted = match[1];
    try { wanted = decodeURIComponent(wanted); } catch { /* a stray percent sign: take it as it stands */ }
    const index = questions.findIndex((question) => question.id === wanted);
    if (index < 0) {
      count.textContent = `No test question has the id ${wanted.slice(0, 120)}.`;
      return;
    }
    if (!visible.includes(index)) { form.reset(); refresh(); }
    const card = cards[index];
    fill(card);
    for (const other of list.querySelectorAll(".target")) other.classList.remove("target");
    card.classList.add("target");
    card.scrollIntoView({ block: "start" });
    // cards above take their real height now: place it again
    requestAnimationFrame(() => requestAnimationFrame(() => { card.scrollIntoView({ block: "start" }); card.focus({ preventScroll: true }); }));
  }
  addEventListener("hashchange", follow);

  // ---- one picture, large
  const viewer = byId("viewer");
  const image = byId("viewer-image");
  let open = null;
  function openViewer(index, position, from) {
    open = { index, position, from };
    paintViewer();
    viewer.showModal();
  }
  function paintViewer() {
    const question = questions[open.index];
    const episode = episodes[question.e];
    const sources = framesOf(question.e);
    const frame = episode.indices?.[open.position];
    image.src = sources[open.position];
    image.alt = `Frame ${open.position + 1} of ${sources.length} of ${episode.id}`;
    byId("viewer-title").textContent = question.q;
    byId("viewer-title").dir = "auto";
    byId("viewer-caption").textContent = `Frame ${open.position + 1} of ${sources.length}${frame === undefined ? "" : `, number ${frame}${episode.total ? ` of ${episode.total}` : ""}`} · ${episode.id}`;
  }
  function step(by, to) {
    const sources = framesOf(questions[open.index].e);
    if (!sources.some(Boolean)) { viewer.close(); return; }
    let position = to ?? open.position;
    do position = (position + by + sources.length) % sources.length; while (!sources[position]);
    open.position = position;
    open.by = by;
    paintViewer();
  }
  // one whose small picture was not wanted yet fails here first
  image.addEventListener("error", () => {
    if (!open) return;
    framesOf(questions[open.index].e)[open.position] = null;
    step(open.by ?? 1);
  });
  byId("viewer-back").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1], ArrowRight: [1], Home: [1, -1], End: [-1, 0] };
    if (moves[event.key]) { event.preventDefault(); step(...moves[event.key]); }
  });
  viewer.addEventListener("close", () => { open?.from?.focus(); open = null; });

  // ---- paper: what the filters leave, up to a number that paper bears
  const MOST_PRINTED = 100;
  let printing = false;
  addEventListener("beforeprint", () => {
    printing = true;
    attached.slice(0, MOST_PRINTED).forEach((card) => { fill(card); for (const img of card.querySelectorAll("img")) img.loading = "eager"; });
    attached.forEach((card, position) => card.classList.toggle("unprinted", position >= MOST_PRINTED));
    if (attached.length > MOST_PRINTED) list.dataset.note = `The first ${MOST_PRINTED} of ${attached.length} questions; filter to choose others.`;
  });
  addEventListener("afterprint", () => { printing = false; delete list.dataset.note; });

  // after the first paint: the numbers stand before the list is built
  requestAnimationFrame(() => setTimeout(() => { refresh(); follow(); root.dataset.ready = "true"; }));
})();

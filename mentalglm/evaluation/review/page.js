"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { items, dimensions, scores } = data;
  const storageKey = `mentalglm-review:${data.sample}:${data.expert}`;
  const $ = (id) => document.getElementById(id);

  // State: what is kept in the browser and, of it, `ratings` in the file.
  const nothing = () => ({ ratings: {}, position: 0, unsaved: [] });
  let state = { ...nothing(), language: data.language, seenGuide: false };
  let keeps = true;

  function restore() {
    try {
      const kept = localStorage.getItem(storageKey);
      if (kept) state = { ...state, ...JSON.parse(kept) };
      localStorage.setItem(storageKey, JSON.stringify(state));
    } catch {
      keeps = false;
    }
    $("no-storage").hidden = keeps;
    if (!items[state.position]) state.position = 0;
  }

  function keep() {
    if (!keeps) return;
    try {
      localStorage.setItem(storageKey, JSON.stringify(state));
    } catch {
      keeps = false;
      $("no-storage").hidden = false;
    }
  }

  const ratingOf = (item) => state.ratings[item.id] ?? {};
  const isComplete = (item) => dimensions.every((each) => ratingOf(item)[each] != null);
  const isEmpty = (item) => dimensions.every((each) => ratingOf(item)[each] == null) && !ratingOf(item).comment;
  const stateOf = (item) => (isComplete(item) ? "complete" : isEmpty(item) ? "empty" : "partial");
  const current = () => items[state.position];

  function change(item, name, value) {
    const rating = { ...ratingOf(item) };
    if (value === null || value === "") delete rating[name];
    else rating[name] = value;
    state.ratings[item.id] = rating;
    if (!state.unsaved.includes(item.id)) state.unsaved.push(item.id);
    keep();
    showProgress();
  }

  // Words. Texts of posts and of models are only ever put in place as text.
  const words = () => data.words[state.language];
  const word = (name, values = {}) => words()[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);

  function element(tag, text, properties = {}) {
    const node = Object.assign(document.createElement(tag), properties);
    node.textContent = text;
    return node;
  }

  function showWords() {
    document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
    document.title = word("title");
    for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
    for (const node of document.querySelectorAll("[data-text]")) {
      node.textContent = node.dataset.text.split(".").reduce((at, name) => at[name], words().dimensions);
    }
    for (const node of document.querySelectorAll("[data-list]")) {
      node.replaceChildren(...words()[node.dataset.list].map((text) => element("p", text)));
    }
    $("language").lang = state.language === "zh" ? "en" : "zh-Hans";
    $("comment").placeholder = word("comment_hint");
    $("keys").replaceChildren(...words().keys.flatMap(([keys, what]) => [element("dt", keys), element("dd", what)]));
    $("start").textContent = word(items.some((item) => !isEmpty(item)) ? "resume" : "start");
  }

  function notify(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  function announce(text) {
    $("announce").textContent = text;
  }

  // The item on the screen.
  function showItem() {
    const item = current();
    const rating = ratingOf(item);
    $("position").textContent = word("position", { number: state.position + 1, total: items.length });
    $("task").textContent = data.tasks[item.task][state.language];
    for (const id of ["post", "explanation"]) {
      $(id).textContent = item[id];
      $(id).lang = item.language;
    }
    const labels = item.labels.map((label) => element("li", label[state.language].join(" › ")));
    $("labels").replaceChildren(...(labels.length ? labels : [element("li", word("no_label"), { className: "none" })]));
    for (const input of document.querySelectorAll("fieldset input")) {
      input.checked = rating[input.name] === Number(input.value);
    }
    $("comment").value = rating.comment ?? "";
    $("previous").disabled = state.position === 0;
    showProgress();
  }

  function showProgress() {
    const done = items.filter(isComplete).length;
    $("progress").value = done;
    $("progress").setAttribute("aria-label", word("progress", { done, total: items.length }));
    $("done").textContent = word("progress", { done, total: items.length });
    const number = state.unsaved.length;
    $("in-file").textContent = number ? word("not_in_file", { number }) : done ? word("in_file") : "";
    $("in-file-at-end").textContent = $("in-file").textContent;
    $("forget").disabled = number > 0 || !done;
    $("in-file").classList.toggle("waiting", number > 0);
    $("next").textContent = word(state.position === items.length - 1 ? "finish" : "next");
  }

  function goTo(position) {
    state.position = position;
    keep();
    showItem();
    const item = current();
    const values = { number: position + 1, task: data.tasks[item.task][state.language], state: word(stateOf(item)) };
    announce(word("announce", values));
    window.scrollTo(0, 0);
    $("rating").scrollTop = 0;
    focusOn(firstOpen(), { preventScroll: true });
  }

  function goOn() {
    if (state.position < items.length - 1) return goTo(state.position + 1);
    if (items.every(isComplete)) open("finished");
    else goTo(items.findIndex((item) => !isComplete(item)));
  }

  const goBack = () => state.position > 0 && goTo(state.position - 1);

  // Scores, by hand or by key.
  const fieldset = (dimension) => document.querySelector(`fieldset[data-dimension="${dimension}"]`);

  const firstOpen = () => dimensions.find((each) => ratingOf(current())[each] == null) ?? dimensions[0];

  function focusOn(dimension, options = {}) {
    const inputs = [...fieldset(dimension).querySelectorAll("input")];
    (inputs.find((input) => input.checked) ?? inputs[0]).focus(options);
  }

  const dimensionAt = (node) => node.closest?.("fieldset")?.dataset.dimension;

  function scoreByKey(dimension, score) {
    change(current(), dimension, score);
    for (const input of fieldset(dimension).querySelectorAll("input")) input.checked = Number(input.value) === score;
    announce(word("scored", { dimension: words().dimensions[dimension].name, score }));
    const next = dimensions[dimensions.indexOf(dimension) + 1];
    if (next) focusOn(next);
    else $("next").focus();
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    const { key, target } = event;
    if (target === $("comment")) {
      if (key === "Escape") focusOn(dimensions.at(-1));
      return;
    }
    const here = dimensionAt(target);
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    // The last score leads to the next button: a slip of it is mended by another digit there.
    const scored = here ?? (target === $("next") && isComplete(current()) ? dimensions.at(-1) : firstOpen());
    if (/^[0-9]$/.test(key) && scores.includes(Number(key)) && (here || [document.body, $("next")].includes(target))) {
      scoreByKey(scored, Number(key));
    } else if (here && key in steps) {
      const next = dimensions[dimensions.indexOf(here) + steps[key]];
      if (next) focusOn(next);
    } else if (key === "ArrowUp" && target === $("next")) {
      focusOn(dimensions.at(-1));
    } else if (key === "Enter" && (here || target === document.body || (event.shiftKey && target === $("next")))) {
      if (event.shiftKey) goBack();
      else goOn();
    } else if (key === "c" || key === "C") {
      $("comment").focus();
    } else if (key === "?") {
      open("guide");
    } else {
      return;
    }
    event.preventDefault();
  }

  // Dialogs.
  function open(id) {
    if (id === "overview") showOverview();
    $(id).showModal();
    $(id).scrollTop = 0;
    $(id).querySelector("h2").focus({ preventScroll: true });
  }

  function showOverview() {
    const buttons = items.map((item, position) => {
      const button = element("button", position + 1, { type: "button", className: stateOf(item) });
      const said = [word("position", { number: position + 1, total: items.length }), word(stateOf(item))];
      if (ratingOf(item).comment) {
        button.classList.add("commented");
        said.push(word("commented"));
      }
      button.setAttribute("aria-label", said.join(", "));
      if (position === state.position) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => {
        $("overview").close();
        goTo(position);
      });
      const place = document.createElement("li");
      place.append(button);
      return place;
    });
    $("grid").replaceChildren(...buttons);
  }

  // Files. The checksum is over one spelling of the content, so another layout of the JSON does not change it.
  function checksum(savedAt, ratings) {
    const rows = Object.keys(ratings)
      .sort()
      .map((id) => [id, ...dimensions.map((each) => ratings[id][each] ?? null), ratings[id].comment ?? ""]);
    let crc = -1;
    for (const byte of new TextEncoder().encode(JSON.stringify([data.sample, data.expert, savedAt, rows]))) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return (~crc >>> 0).toString(16).padStart(8, "0");
  }

  function save() {
    const ratings = Object.fromEntries(items.filter((item) => !isEmpty(item)).map((item) => [item.id, ratingOf(item)]));
    const savedAt = new Date().toISOString();
    const file = {
      format: data.format,
      sample: data.sample,
      expert: data.expert,
      saved_at: savedAt,
      num_items: items.length,
      ratings,
      checksum: checksum(savedAt, ratings),
    };
    const blob = new Blob([JSON.stringify(file, null, 1)], { type: "application/json" });
    const name = `ratings-${data.expert}-${data.sample.slice(0, 8)}.json`;
    const link = element("a", "", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    state.unsaved = [];
    keep();
    showProgress();
    announce(word("saved", { name }));
  }

  // Nothing stays in this browser, also where another tab has the page open.
  function forget() {
    if (!confirm(word("forget_asks"))) return;
    try {
      localStorage.removeItem(storageKey);
    } catch {
      // A browser that keeps nothing.
    }
    startAnew();
    $("finished").close();
    announce(word("forgotten"));
  }

  function startAnew() {
    state = { ...state, ...nothing() };
    showItem();
  }

  function refusal(file) {
    if (file?.format !== data.format || typeof file.ratings !== "object" || !file.ratings) return word("wrong_file");
    if (file.sample !== data.sample) return word("wrong_sample");
    if (file.expert !== data.expert) return word("wrong_expert", { expert: String(file.expert) });
    return checksum(file.saved_at, file.ratings) === file.checksum ? null : word("edited_file");
  }

  async function load(blob) {
    let file = null;
    try {
      file = JSON.parse(await blob.text());
    } catch {
      // Not JSON: refused below.
    }
    let problem;
    try {
      problem = refusal(file);
    } catch {
      problem = word("wrong_file");
    }
    if (problem) return notify(problem);
    const found = items.filter((item) => file.ratings[item.id]);
    const known = (rating) =>
      Object.fromEntries([
        ...dimensions.filter((each) => scores.includes(rating[each])).map((each) => [each, rating[each]]),
        ...(typeof rating.comment === "string" && rating.comment ? [["comment", rating.comment]] : []),
      ]);
    const differ = found.filter((item) => {
      const names = [...dimensions, "comment"];
      return !isEmpty(item) && names.some((name) => (ratingOf(item)[name] ?? "") !== (file.ratings[item.id][name] ?? ""));
    });
    if (differ.length && !confirm(word("replace", { number: differ.length }))) return;
    for (const item of found) state.ratings[item.id] = known(file.ratings[item.id]);
    state.unsaved = state.unsaved.filter((id) => !file.ratings[id]);
    keep();
    notify("");
    const next = items.findIndex((item) => !isComplete(item));
    goTo(next < 0 ? 0 : next);
    announce(word("loaded", { number: found.length }));
  }

  // What the controls do.
  document.addEventListener("keydown", onKey);
  $("rating").addEventListener("submit", (event) => event.preventDefault());
  $("rating").addEventListener("change", ({ target }) => {
    if (target.type === "radio") change(current(), target.name, Number(target.value));
  });
  $("comment").addEventListener("input", ({ target }) => {
    change(current(), "comment", target.value.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd"));
  });
  $("previous").addEventListener("click", goBack);
  $("next").addEventListener("click", goOn);
  $("language").addEventListener("click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    keep();
    notify("");
    showWords();
    showItem();
  });
  $("save").addEventListener("click", save);
  $("save-at-end").addEventListener("click", save);
  $("forget").addEventListener("click", forget);
  $("load").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await load(target.files[0]);
    target.value = "";
  });
  $("open-guide").addEventListener("click", () => open("guide"));
  $("open-overview").addEventListener("click", () => open("overview"));
  $("start").addEventListener("click", () => $("guide").close());
  $("unrated").addEventListener("click", () => {
    $("overview").close();
    const next = items.findIndex((item) => !isComplete(item));
    if (next < 0) open("finished");
    else goTo(next);
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  $("guide").addEventListener("close", () => {
    state.seenGuide = true;
    keep();
    focusOn(firstOpen(), { preventScroll: true });
  });
  window.addEventListener("storage", ({ key, newValue }) => {
    if (key !== storageKey) return; // another tab of this page
    if (!newValue) return startAnew();
    state = { ...JSON.parse(newValue), position: state.position, language: state.language };
    showItem();
  });
  window.addEventListener("beforeunload", (event) => {
    if (state.unsaved.length) event.preventDefault();
  });

  restore();
  showWords();
  showItem();
  if (state.seenGuide) focusOn(firstOpen(), { preventScroll: true });
  else open("guide");
})();

(() => {
  const { make, add, percent, plural, fixed, glyphs, words, tokenOf, isFiltered, spell, button, fill, bar, swatch, describe, walk } = eva;
  const SECRET = "eva-local-key";
  const RETRY_MS = 2000;
  const COPIED_MS = 1500;
  const SAVE_MS = 1000;
  const UNDO_MS = 15_000;
  const SIDE_BY_SIDE = 3;
  const LISTED = 12;
  const NUMBERS = ["temperature", "max_tokens", "seed"];
  const $ = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 60rem)");
  const slim = matchMedia("(max-width: 70rem)");

  // Where a browser keeps nothing at all, it lasts as long as the page.
  let session = {};
  try {
    session = sessionStorage;
  } catch { /* Then not in this tab, either. */ }

  // Names in the order in which they were met: the place gives a member its letter and colour.
  const members = [];
  function place(name) {
    const found = members.indexOf(name);
    return found < 0 ? members.push(name) - 1 : found;
  }

  /** What went wrong, in words for the user. */
  class Trouble extends Error {}
  const say = (words) => { $("said").textContent = words; };
  function trouble(words) {
    if ($("trouble").textContent !== words) $("trouble").textContent = words;
  }

  // The server

  async function request(path, options = {}) {
    const secret = session[SECRET];
    const headers = { ...(secret && { Authorization: `Bearer ${secret}` }), ...options.headers };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server cannot be reached. Is eva-local serve still running?");
    }
    const { ok, status } = response;
    if (!ok) throw Object.assign(new Trouble(status === 401 ? askForKey() : await refusal(response)), { status });
    return response;
  }
  async function refusal(response) {
    const told = await response.json().then((body) => body.error?.message, () => undefined);
    const said = typeof told === "string" && told ? told.replace(/[.\s]+$/, "") : "";
    const isBusy = response.status === 503 || response.status === 429;
    const seconds = Number(response.headers.get("Retry-After"));
    const again = !isBusy ? "" : seconds > 0 ? ` Try again in ${seconds} s.` : " Try again soon.";
    const what = isBusy ? "is busy" : response.status < 500 ? "refused the request" : `failed (${response.status})`;
    return `The server ${what}${said && `: ${said}`}.${again}`;
  }
  /** Call `take` with the data of every server-sent event; they are one line of JSON each. */
  async function events(body, take) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const data = line.startsWith("data:") ? line.slice(5).trim() : "";
        if (data && data !== "[DONE]") take(JSON.parse(data));
      }
    }
  }

  /** Show the field for the key, and return why. */
  function askForKey() {
    const refused = SECRET in session;
    delete session[SECRET];
    $("key").hidden = false;
    $("secret").focus();
    return refused ? "The server does not know this API key." : "The server wants its API key.";
  }
  async function load() {
    try {
      const { data } = await (await request("v1/models")).json();
      trouble("");
      offer(data);
    } catch (error) {
      trouble(error.status === 503 ? "The server is still opening its models."
        : error instanceof Trouble ? error.message : "The server's list of models cannot be read.");
      if ($("key").hidden) setTimeout(load, RETRY_MS);
    }
  }
  const cast = new Map();
  function offer(models) {
    cast.clear();
    for (const model of models) cast.set(model.id, model);
    models.flatMap((model) => model.members).forEach(place);
    $("model").replaceChildren(...models.map(({ id, members: names, space }) => {
      const how = id.includes("/") ? " alone" : names.length > 1 ? ` (${names.length} members together${space === "bytes" ? ", in bytes" : ""})` : "";
      return make("option", "", id + how, { value: id });
    }));
    introduce(chat.settings.model ? chat.settings : prefs);
    ready();
  }
  /** Show who the chosen model is, and what can be set of it; then put settings into the fields. */
  function introduce(settings = { ...prefs, ...chosen() }) {
    setAll(settings);
    const { members: names = [], space } = cast.get($("model").value) ?? {};
    $("empty-words").textContent = names.length < 2 ? "One model answers alone."
      : "These models write the answer together. Tokens shows which of them carried each token, and what each proposed.";
    $("space").textContent = names.length > 1 && space ? `Shared space: ${space}. It is chosen when the server is started (--space).` : "";
    $("cast").replaceChildren(...names.map((name) => glyphs(add(make("li"), swatch(place(name))), name, true)));
    const field = (type, name, label, value) => {
      const input = make("input", "", undefined, { type, name: `${name} ${label}`, value, min: 0, step: "any", placeholder: "1", autocomplete: "off" });
      input.setAttribute("form", "composer");
      return glyphs(add(make("label", "check"), input), label, true);
    };
    const others = [...cast.keys()].filter((id) => id !== $("model").value);
    $("own").replaceChildren($("own").firstChild, ...names.map((name) => field("number", "weight", name, "")));
    $("rivals").replaceChildren($("rivals").firstChild, ...others.map((id) => field("checkbox", "beside", id, id)));
    setAll(settings);
    limit();
  }
  const rivals = () => [...$("rivals").querySelectorAll(":checked")].map(({ value }) => value);
  /** Let settings say what else can be set, and what they come to. */
  function limit() {
    const count = 1 + rivals().length;
    for (const each of $("rivals").querySelectorAll("input")) each.disabled = count >= SIDE_BY_SIDE && !each.checked;
    $("send").textContent = count > 1 ? `Ask ${count}` : "Send";
    $("rivals").hidden = cast.size < 2;
    $("own").hidden = $("weights").value !== "own";
    room();
  }
  /** Say how much of the context the conversation takes. */
  function room() {
    const last = path().findLast(({ used }) => used);
    const most = cast.get(last?.model)?.max_model_len;
    $("meter").replaceChildren(...(most ? ["Context", bar(last.used / most, -1), `${last.used} of ${most} tokens`] : []));
  }

  // What is remembered of this browser's user: settings, theme, view

  const PREFS = "eva-local";
  const prefs = {};
  try {
    const read = Object.entries(JSON.parse(localStorage.getItem(PREFS)) ?? {});
    Object.assign(prefs, Object.fromEntries(read.filter(([, value]) => typeof value === "string")));
  } catch { /* Then nothing is remembered. */ }
  function prefer(changed) {
    Object.assign(prefs, changed);
    try {
      localStorage.setItem(PREFS, JSON.stringify(prefs));
    } catch { /* Nor is this. */ }
  }
  const fields = () => [...$("composer").elements].filter(({ name }) => name);
  const chosen = () => Object.fromEntries(fields().map(({ name, type, checked, value }) => [name, type === "checkbox" && !checked ? "" : value]));
  function setAll(settings) {
    for (const field of fields()) {
      const value = settings[field.name];
      if (field.type === "checkbox") field.checked = Boolean(value);
      else if (value !== undefined && [...field.options ?? [{ value }]].some((option) => option.value === value)) field.value = value;
    }
  }
  const schemes = [...document.styleSheets[0].cssRules].filter((rule) => rule.media?.mediaText.includes("prefers-color-scheme"));
  function paintIn(theme) {
    prefer({ theme });
    document.documentElement.style.colorScheme = theme === "system" ? "" : theme;
    const when = { light: "not all", dark: "all" }[theme] ?? "(prefers-color-scheme: dark)";
    for (const rule of schemes) rule.media.mediaText = when;
  }

  // Conversations: messages that hang on each other; where several hang on one, `next` says which is shown

  const newId = () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const newChat = () => ({ id: newId(), title: "", created: Date.now(), changed: 0, next: null, settings: {}, messages: {} });
  const chats = new Map();
  let chat = newChat();

  const childrenOf = (id, of = chat) => Object.values(of.messages).filter(({ parent }) => parent === id).sort((a, b) => a.at - b.at);
  const above = (message) => chat.messages[message.parent] ?? chat;
  /** Return the messages that are shown, first to last. */
  function path(of = chat) {
    const found = [];
    for (let [at, all] = [of, childrenOf(null, of)]; all.length; all = childrenOf(at.id, of)) {
      const { next } = at;
      found.push(at = all.find(({ id }) => id === next) ?? all.at(-1));
    }
    return found;
  }
  function newMessage(role, parent, content = "") {
    // Two of the same moment have an order, too.
    const at = Math.max(Date.now(), 1 + (childrenOf(parent).at(-1)?.at ?? 0));
    const how = { model: "", side: "", finish: "", note: "", stopped: false, first: 0, spent: 0, used: 0 };
    const message = { id: newId(), parent, role, content, at, next: null, thought: "", ...how };
    chat.messages[message.id] = message;
    above(message).next = message.id;
    return message;
  }
  /** Return the answers that stand side by side with one, itself among them. */
  const beside = (message) => (message.side ? childrenOf(message.parent).filter(({ side }) => side === message.side) : [message]);
  const titleOf = (which) => which.title || childrenOf(null, which)[0]?.content.trim().split("\n")[0].slice(0, 80) || "New chat";

  /** Say something of the browser's storage, once. */
  function warn(what, words) {
    if (what in $("unkept").dataset) return;
    $("unkept").dataset[what] = "said";
    $("unkept").append(`${words} `);
  }
  function unkept(error) {
    const why = error?.name === "QuotaExceededError" ? "its room is full" : "its storage cannot be used";
    warn("unkept", `This browser keeps nothing more: ${why}. What is on the screen stays until the page is closed; Export all saves it to a file.`);
  }
  /** Keep a conversation, and what is known of the tokens of messages. */
  function keepChat(which, ids = []) {
    chats.set(which.id, which);
    return store.save(which, ids.map(traceOf).filter(({ steps }) => steps.length)).catch(unkept);
  }
  const traced = new Map();
  const traces = async (ids) => (await store.traces(ids.filter((id) => !traced.has(id))).catch(() => [])).forEach(take);
  /** Take steps in whose members are numbered otherwise. */
  function take({ id, names, steps }) {
    const numbers = names.map(place);
    const renamed = (ballot) => ({ ...ballot, member: numbers[ballot.member] });
    traced.set(id, steps.map((step) => ({
      ...step, carrier: step.carrier < 0 ? -1 : numbers[step.carrier], ballots: step.ballots.map(renamed),
    })));
  }

  function open(which) {
    stop();
    running = null;
    chat = which;
    introduce(chat.settings.model ? chat.settings : undefined);
    history.replaceState(null, "", chat.changed ? `#${chat.id}` : location.pathname);
    follow = true;
    sync();
    list();
  }
  function restart() {
    open(newChat());
    if (slim.matches) aside(false);
    $("words").focus();
  }
  /** Take in what the browser keeps, at first and whenever another tab has changed it. */
  async function remembered() {
    try {
      const { fitting, gone, bad } = await store.all();
      gone.forEach((id) => chats.delete(id));
      for (const found of fitting) {
        const mine = chats.get(found.id) ?? found;
        chats.set(found.id, Object.assign(mine, { title: found.title, changed: Math.max(mine.changed, found.changed) }));
        store.join(mine, found);
      }
      if (bad) warn("bad", `${plural(bad, "conversation")} of this browser cannot be read: left as it is.`);
    } catch (error) {
      unkept(error);
    }
    const asked = chats.get(location.hash.slice(1));
    if (asked && !turns.length) open(asked);
    else if (!running) sync();
    list();
  }
  store.heard?.addEventListener("message", remembered);

  // The list of conversations

  let opened = "";
  const newest = () => [...chats.values()].sort((a, b) => b.changed - a.changed);
  function list() {
    const held = $("chats").contains(document.activeElement) && document.activeElement.dataset.key;
    // A name that is being written stays.
    if ($("chats").querySelector(".name")) return;
    const sought = $("find").value.trim().toLowerCase();
    const found = newest().map((each) => [each, snippet(each, sought)]).filter(([, hit]) => hit !== null);
    $("chats").replaceChildren(...found.map(([each, hit]) => entry(each, hit)));
    $("none").textContent = sought ? "Nothing found." : "Conversations are kept in this browser, and appear here.";
    $("export").disabled = !chats.size;
    if (held) document.querySelector(`#chats [data-key="${held}"]`)?.focus();
  }
  /** Return where a conversation has what is sought; null where nowhere. */
  function snippet(which, sought) {
    if (!sought || titleOf(which).toLowerCase().includes(sought)) return "";
    for (const { content } of Object.values(which.messages)) {
      const at = content.toLowerCase().indexOf(sought);
      if (at >= 0) return `${at > 20 ? "…" : ""}${content.slice(Math.max(0, at - 20), at + 60)}`;
    }
    return null;
  }
  /** Put a field in place of a node for a while; `done` is told what was written, or null; what it `may` not be is written on. */
  function editing(stands, field, label, done, may = () => true) {
    const end = (isMeant) => {
      if (isMeant && !may(field.value)) return;
      form.replaceWith(stands);
      done(isMeant ? field.value : null);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.shiftKey || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    });
    const tools = add(make("div", "tools"), button("", label, () => end(true)), button("", "Cancel", () => end(false)));
    const form = add(make("div", "change"), field, tools);
    stands.replaceWith(form);
    field.focus();
  }
  function entry(which, hit) {
    const [{ id }, title] = [which, titleOf(which)];
    const go = button("go", undefined, () => {
      if (which !== chat) open(which);
      if (slim.matches) aside(false);
    });
    go.dataset.key = `go-${id}`;
    words(go, title);
    if (hit) go.append(words(make("span", "aside"), hit));
    go.ariaCurrent = which === chat ? "true" : null;
    const isOpen = opened === id;
    const more = button("more", "⋯", () => {
      opened = isOpen ? "" : id;
      list();
    }, { ariaLabel: `More of ${title}`, ariaExpanded: String(isOpen) });
    more.dataset.key = `more-${id}`;
    const node = add(make("li"), go, more);
    return !isOpen ? node : add(node, add(make("div", "tools"),
      button("rename", "Rename", () => rename(which, node)),
      button("markdown", "Markdown", () => saveFile(`${fileName(title)}.md`, "text/markdown", written(which))),
      button("json", "JSON", () => exported([which], fileName(title))),
      button("delete", "Delete", () => erase(which))));
  }
  function rename(which, node) {
    const field = make("input", "name", undefined, { value: titleOf(which), maxLength: 200, ariaLabel: "New name" });
    node.replaceChildren(node.firstChild);
    editing(node.firstChild, field, "Rename", (title) => {
      if (title !== null) keepChat(Object.assign(which, { title: title.trim() }));
      opened = "";
      list();
      document.querySelector(`[data-key="go-${which.id}"]`)?.focus();
    });
    field.select();
  }
  let [pending, undo] = [0, null];
  function erase(which) {
    if (which === chat) restart();
    chats.delete(which.id);
    store.save({ ...which, deleted: Date.now() }).catch(unkept);
    list();
    toast(`Deleted “${titleOf(which)}”.`, () => {
      keepChat(which);
      if (!turns.length) open(which);
      list();
    });
  }
  function toast(said, act = null) {
    undo = act;
    clearTimeout(pending);
    if (slim.matches) aside(false);
    $("toast-words").replaceChildren(words(make("span"), said));
    $("undo").hidden = !undo;
    $("toast").hidden = false;
    say(said);
    if (undo) $("undo").focus();
    pending = setTimeout(() => { $("toast").hidden = true; }, UNDO_MS);
  }

  // Files

  const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-+|-+$/g, "") || "chat";
  function saveFile(name, type, text) {
    const href = URL.createObjectURL(new Blob([text], { type }));
    make("a", "", undefined, { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  }
  const traceOf = (id) => ({ id, names: members, steps: traced.get(id) ?? [] });
  async function exported(which, name) {
    const ids = which.map(({ messages }) => Object.keys(messages));
    await traces(ids.flat());
    const whole = which.map((each, i) => ({ ...each, traces: ids[i].map(traceOf).filter(({ steps }) => steps.length) }));
    saveFile(`${name}.json`, "application/json", JSON.stringify({ format: "eva-local", version: 1, chats: whole }));
  }
  /** Return a conversation, as it is shown, as Markdown. */
  function written(which) {
    const system = which.settings.system ? ["**System**", which.settings.system] : [];
    const told = path(which).flatMap(({ role, model, content }) => [`**${role === "user" ? "You" : model || "Answer"}**`, content]);
    return `${[`# ${titleOf(which)}`, ...system, ...told].join("\n\n")}\n`;
  }
  async function imported(file) {
    const read = await file.text().then(JSON.parse).catch(() => null);
    if (read?.format !== "eva-local" || !Array.isArray(read.chats)) return toast(`${file.name} is no file of conversations.`);
    const fitting = read.chats.map((raw) => [store.fit(raw), raw?.traces]).filter(([found]) => found);
    for (const [found, kept] of fitting) {
      const mine = chats.get(found.id) ?? found;
      store.join(mine, found);
      const fit = (Array.isArray(kept) ? kept : []).map(store.fitTrace).filter((trace) => found.messages[trace?.id] && !traced.has(trace.id));
      fit.forEach(take);
      await keepChat(mine, fit.map(({ id }) => id));
    }
    const bad = read.chats.length - fitting.length;
    toast(`Imported ${plural(fitting.length, "conversation")}.${bad ? ` ${plural(bad, "other")} cannot be read.` : ""}`);
    if (!running) sync();
    return list();
  }

  // What is shown of the conversation: questions and answers in turn

  const turns = [];
  let running = null;
  function ready() {
    room();
    $("send").disabled = !$("model").value;
    $("stop").hidden = !($("send").hidden = running !== null);
    for (const each of document.querySelectorAll(".again, .goon, .edit, .branches button:not(.end)")) each.disabled = running !== null;
  }
  /** Show the messages of the path, and leave what stands already. */
  function sync() {
    const now = path().flatMap(beside);
    let same = 0;
    while (same < turns.length && turns[same].message === now[same]) same += 1;
    for (const turn of turns.splice(same)) {
      if ([kept.turn, shown.turn].includes(turn)) hide();
      turn.node.remove();
    }
    for (const message of now.slice(same)) {
      const turn = message.role === "user" ? newQuestion(message) : newAnswer(message);
      turns.push(turn);
      $("turns").append(turn.node);
      if (turn.steps) settled(turn);
    }
    turns.forEach(branches);
    document.title = turns.length ? `${titleOf(chat)} – eva-local` : "eva-local";
    ready();
    look();
  }
  /** Offer the other versions of a message, and those beside it; answers side by side are one version. */
  function branches({ message, node, ways, choose }) {
    const sides = beside(message);
    const all = childrenOf(message.parent).filter((each) => beside(each)[0] === each);
    const here = all.indexOf(sides[0]);
    const way = (name, sign, to) => button(all[to] ? "" : "end", sign, () => turnTo(all[to], name), { ariaLabel: name, disabled: !all[to] });
    ways.hidden = all.length < 2;
    ways.replaceChildren(way("Version before", "‹", here - 1), `${here + 1}/${all.length}`, way("Version after", "›", here + 1));
    node.classList.toggle("side", sides.length > 1);
    node.style.setProperty("--span", 6 / sides.length);
    if (choose) Object.assign(choose, { hidden: sides.length < 2, ariaPressed: String(sides.length < 2 || path().includes(message)) });
  }
  function turnTo(message, name) {
    above(message).next = message.id;
    keepChat(chat);
    sync();
    const { ways, choose } = turns.find((turn) => turn.message === message);
    (name ? ways.querySelector(`[aria-label="${name}"]:enabled`) ?? ways.querySelector("button:enabled") : choose).focus();
  }
  function newQuestion(message) {
    const turn = { message, node: make("article", "turn asked"), said: words(make("div", "said"), message.content), ways: make("span", "branches") };
    turn.edit = button("edit", "Edit", () => change(turn));
    add(turn.node, add(make("div", "tools"), make("h2", "eyebrow", "You"), turn.edit, turn.ways), turn.said);
    return turn;
  }
  /** Let a question be written anew: what is sent stands beside the old one. */
  function change({ message, said, edit }) {
    const field = make("textarea", "", undefined, { value: message.content, ariaLabel: "Your message, edited" });
    field.rows = Math.min(12, field.value.split("\n").length + 1);
    edit.hidden = true;
    editing(said, field, "Send", (question) => {
      edit.hidden = false;
      if (question !== null) ask(question, message.parent);
      (question === null ? edit : $("words")).focus();
    }, mayAsk);
  }
  /** Return what is asked: a question that got no answer is not asked again with the next one. */
  function messages(asked, goesOn) {
    const line = [];
    for (let at = asked; at; at = chat.messages[at.parent]) line.unshift(at);
    const told = line.filter(({ role, content }, i) => i >= line.length - 2 || (role === "user" ? line[i + 1].content : content));
    return (goesOn ? told : told.slice(0, -1)).map(({ role, content }) => ({ role, content }));
  }
  function body(message, goesOn) {
    const settings = chosen();
    const { system, thinking, weights, json_schema: schema } = settings;
    const { members: names = [] } = cast.get(message.model) ?? {};
    const own = Object.fromEntries(names.map((name) => [name, Number(settings[`weight ${name}`] || 1)]));
    return JSON.stringify({
      model: message.model,
      messages: [...(system.trim() ? [{ role: "system", content: system }] : []), ...messages(message, goesOn)],
      ...Object.fromEntries(NUMBERS.filter((name) => settings[name]).map((name) => [name, Number(settings[name])])),
      ...(weights === "default" || names.length < 2 ? {} : { weights: weights === "own" ? own : weights }),
      // Behind a begun answer nobody thinks, and a schema is of a whole one.
      ...(thinking === "auto" || goesOn ? {} : { thinking }),
      ...(!schema.trim() || goesOn ? {} : { json_schema: schema }),
      stream: true,
      stream_options: { include_usage: true },
      trace: true,
    });
  }
  function unfit() {
    const wrong = [...$("composer").elements].find((field) => !field.checkValidity());
    if (wrong) unfold(true);
    wrong?.reportValidity();
    return wrong !== undefined;
  }
  const mayAsk = (question) => question.trim() && !running && !$("send").disabled && !unfit();
  function send() {
    const question = $("words").value;
    if (!mayAsk(question)) return;
    $("words").value = "";
    grow();
    const last = path().at(-1);
    ask(question, last?.role === "user" ? last.parent : last?.id ?? null);
  }
  const ask = (question, parent) => answer(begun(newMessage("user", parent, question).id));
  /** Return the answers to a question, none of them written: one, or several side by side. */
  function begun(parent) {
    const models = [$("model").value, ...rivals()];
    const side = models.length > 1 ? newId() : "";
    const all = models.map((model) => Object.assign(newMessage("assistant", parent), { model, side }));
    above(all[0]).next = all[0].id;
    return all;
  }
  function again({ message }) {
    if (running || unfit()) return;
    // Where nothing was written, there is nothing to keep beside the new one.
    const isEmpty = !message.content && !message.thought && !childrenOf(message.id).length;
    answer(isEmpty ? [message] : begun(message.parent));
  }
  async function goOn({ message }) {
    if (running || unfit()) return;
    await traces([message.id]);
    if (!running && turns.some((turn) => turn.message === message)) answer([message], true);
  }
  /** Let answers be written, at once. */
  async function answer(all, goesOn = false) {
    for (const message of all) {
      Object.assign(message, { model: message.side ? message.model : $("model").value, finish: "", note: "", stopped: false });
      if (!traced.has(message.id)) traced.set(message.id, []);
    }
    Object.assign(chat, { settings: chosen(), changed: Date.now() });
    history.replaceState(null, "", `#${chat.id}`);
    // An answer that is written anew, or gone on with, is drawn anew.
    const at = turns.findIndex(({ message }) => all.includes(message));
    for (const turn of at < 0 ? [] : turns.splice(at)) turn.node.remove();
    const mine = running = new AbortController();
    sync();
    keepChat(chat);
    list();
    // A button that was pressed may be gone.
    if (document.activeElement === document.body) $("talk").focus();
    follow = true;
    await Promise.all(turns.filter(({ message }) => all.includes(message)).map((turn) => write(turn, chat, goesOn, mine.signal)));
    if (running !== mine) return;
    running = null;
    const [{ note, stopped }] = all;
    say(note || (stopped ? "Stopped." : all.length > 1 ? `${all.length} answers complete.` : `Answer complete, ${turns.at(-1).facts.textContent}.`));
    ready();
  }
  /** Write one answer of a conversation, which may be left meanwhile. */
  async function write(turn, mine, goesOn, signal) {
    const { message } = turn;
    let saved = turn.began = performance.now();
    turn.node.classList.add("running");
    paint(turn);
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: body(message, goesOn), signal };
      const response = await request("v1/chat/completions", options);
      await events(response.body, (chunk) => {
        receive(turn, chunk);
        if (performance.now() - saved < SAVE_MS) return;
        saved = performance.now();
        store.saveNow(mine);
      });
      if (!message.finish) throw new Trouble("The connection ended early: the answer is not complete.");
    } catch (error) {
      message.stopped = signal.aborted;
      message.note = signal.aborted ? "" : error instanceof Trouble ? error.message
        : "The connection broke off: the answer is not complete.";
    }
    // It may have been deleted meanwhile.
    if (chats.has(mine.id)) keepChat(mine, [message.id]);
    settled(turn);
    if (turn.node.isConnected) draw(turn);
  }
  /** Say how an answer ended, and what can be done with it. */
  function settled(turn) {
    const { message } = turn;
    const where = message.thought && !message.content ? " while thinking" : "";
    const ended = message.note || (message.stopped ? "Stopped."
      : message.finish === "length" ? `Cut off${where}: max tokens are reached, or the members have no room for more.`
      : message.finish ? "" : "Interrupted: the page was closed before the end.");
    turn.node.classList.remove("running");
    turn.notice.replaceChildren(...words(make("span"), ended).childNodes);
    turn.notice.classList.toggle("calm", !message.note);
    turn.again.textContent = message.note && !message.content ? "Try again" : "Regenerate";
    turn.goon.hidden = !message.content || message.finish === "stop";
    turn.copy.hidden = !message.content;
  }
  const stop = () => running?.abort();

  // An answer

  function newAnswer(message) {
    const turn = {
      message, steps: traced.get(message.id) ?? [], tokens: [], thought: null, began: 0, last: 0,
      node: make("article", "turn"), text: tokenBox("Answer"), prose: make("div", "prose"), foot: make("div", "foot"),
      waiting: make("p", "waiting aside", "reading the prompt…"), notice: make("p", "note"),
      bar: make("div", "shares", "", { ariaHidden: "true" }), legend: make("ul", "legend"), contest: make("details", "contest"), ranges: new Map(),
      tools: make("div", "tools"), facts: make("span", "facts"), ways: make("span", "branches"),
    };
    turn.look = button("look", "", () => {
      turn.asText = !isText(turn);
      look();
    });
    turn.choose = button("choose", "Go on with this", () => turnTo(message));
    turn.copy = button("copy", "Copy", () => copy(turn.copy, message.content));
    turn.again = button("again", "Regenerate", () => again(turn));
    turn.goon = button("goon", "Continue", () => goOn(turn));
    add(turn.tools, turn.choose, turn.look, turn.copy, turn.again, turn.goon, turn.ways, turn.facts);
    add(turn.foot, turn.notice, turn.bar, turn.legend, turn.contest, turn.tools);
    add(turn.node, glyphs(make("h2", "eyebrow"), message.model, true), turn.waiting, turn.text, turn.prose, turn.foot);
    listen(turn, turn.text);
    if (message.thought) thoughtOf(turn);
    return turn;
  }
  const tokenBox = (what) => make("div", "text", undefined, { tabIndex: 0, role: "group", ariaLabel: `${what}: arrow keys go from token to token` });
  /** Return the fold of a thought, before the answer. */
  function thoughtOf(turn) {
    if (turn.thought) return turn.thought;
    const { fold, summary, text, prose } = turn.thought = {
      fold: make("details", "thought"), summary: make("summary"), text: tokenBox("Thought"), prose: make("div", "prose"),
    };
    turn.text.before(add(fold, summary, text, prose));
    listen(turn, text);
    return turn.thought;
  }
  function receive(turn, chunk) {
    if (chunk.error) throw new Trouble(`The server gave up: ${chunk.error.message}`);
    turn.message.used = chunk.usage?.total_tokens ?? turn.message.used;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { message } = turn;
    const thought = choice.delta?.reasoning_content ?? "";
    const written = choice.delta?.content ?? "";
    message.thought += thought;
    message.content += written;
    message.finish = choice.finish_reason ?? message.finish;
    if (!thought && !written && !choice.eva) return;
    const step = choice.eva && stepOf(choice.eva, thought || written);
    if (thought || step?.thought) thoughtOf(turn);
    if (step) count(turn, step);
    paint(turn);
  }
  /** Return a traced step as `eva` describes it. */
  function stepOf(vote, written) {
    const top = (candidates) => {
      const chosen = candidates.findIndex(([piece]) => piece === vote.piece);
      return candidates.map(([piece, share], rank) => [piece, share, rank === chosen]);
    };
    return {
      shown: written,
      thought: vote.reasoning !== null,
      hex: vote.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" "),
      probability: vote.probability,
      apart: vote.disagreement ?? undefined,
      carrier: vote.decided_by ? place(vote.decided_by) : -1,
      top: top(vote.top),
      ballots: vote.members.map(({ name, stayed, ...ballot }) => ({
        ...ballot,
        member: place(name),
        top: top(ballot.top),
        // Who was not asked has no candidates.
        verdict: stayed ? "stayed" : ballot.top.length ? "filtered" : "absent",
      })),
    };
  }
  function count(turn, step) {
    const now = performance.now();
    if (!turn.steps.length) turn.message.first = now - turn.began;
    else if (turn.last) turn.message.spent += now - turn.last;
    turn.last = now;
    turn.steps.push(step);
  }
  /** Append the tokens that are not there yet; nothing that stands already is touched. */
  function drawTokens(turn) {
    if (!turn.tokens.length) {
      const lead = turn.message.content.slice(0, disputes.unknown(turn.message.content, turn.steps));
      turn.text.replaceChildren(...(lead ? [glyphs(make("span"), lead, true)] : []));
    }
    for (let index = turn.tokens.length; index < turn.steps.length; index += 1) {
      const step = turn.steps[index];
      const box = step.thought ? thoughtOf(turn).text : turn.text;
      // A character that several tokens make is shown by the last of them.
      const isInside = Boolean(box.lastElementChild?.classList.contains("begun"));
      const node = tokenOf(step, index, step.hex !== "" && step.shown === "", isInside);
      turn.tokens.push(node);
      box.append(node);
    }
  }
  async function copy(button, text) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without TLS on another machine than this one, browsers keep the clipboard closed.
      const held = make("textarea", "unseen", undefined, { value: text });
      document.body.append(held);
      held.select();
      document.execCommand("copy");
      held.remove();
      button.focus();
    }
    if (before === "Copied") return;
    button.textContent = "Copied";
    say("Copied.");
    setTimeout(() => { button.textContent = before; }, COPIED_MS);
  }
  markdown.copy = copy;

  // What follows the tokens once a frame: shares, figures, and the place on the screen

  const unpainted = new Set();
  function paint(turn) {
    if (!unpainted.size) requestAnimationFrame(painted);
    unpainted.add(turn);
  }
  function painted() {
    const due = [...unpainted];
    unpainted.clear();
    due.forEach(draw);
    if (!follow) return;
    $("talk").scrollTop = $("talk").scrollHeight;
    height = $("talk").scrollTop;
  }
  const isText = ({ asText }) => asText ?? $("as-text").checked;
  // Markdown is read from its beginning: where that takes long, it is done less often.
  function draw(turn) {
    if (!turn.steps) return;
    const now = performance.now();
    if (!isText(turn)) drawTokens(turn);
    else if (turn.due > now && turn.node.classList.contains("running")) paint(turn);
    else {
      if (turn.thought) markdown.draw(turn.thought.prose, turn.message.thought);
      markdown.draw(turn.prose, turn.message.content);
      turn.due = performance.now() + 4 * (performance.now() - now);
    }
    figures(turn);
    if (!turn.node.classList.contains("running")) contest(turn);
  }
  /** Draw all in the view that is chosen, once what is known of its tokens is there. */
  async function look() {
    for (const turn of turns) {
      turn.node.classList.toggle("as-tokens", !isText(turn));
      if (turn.look) turn.look.textContent = isText(turn) ? "Tokens" : "Text";
    }
    turns.forEach(draw);
    const unknown = turns.filter(({ message, steps }) => steps && !traced.has(message.id));
    if (unknown.length) await traces(unknown.map(({ message }) => message.id));
    for (const turn of unknown) {
      turn.steps = traced.get(turn.message.id) ?? turn.steps;
      draw(turn);
    }
    if (follow && turns.length) paint(turns.at(-1));
  }
  function figures({ message, node, steps, thought, bar, legend, facts }) {
    const told = steps.filter(({ hex }) => hex);
    const names = [...new Set(told.flatMap(({ ballots }) => ballots.map(({ member }) => member)))];
    const shares = names.map((member) => [member, told.filter(({ carrier }) => carrier === member).length / told.length]);
    bar.replaceChildren(...shares.map(([member, share]) => fill(share, member)));
    const filtered = told.filter(isFiltered).length;
    legend.replaceChildren(...shares.map(([member, share]) =>
      add(glyphs(add(make("li"), swatch(member)), members[member], true), make("span", "much", ` ${percent(share)}`))));
    if (filtered) legend.append(make("li", "dotted", `${plural(filtered, "token")} with a filtered vote`));
    const isThinking = node.classList.contains("running") && !message.content;
    thought?.fold.classList.toggle("thinking", isThinking);
    if (thought) thought.summary.textContent = `${isThinking ? "Thinking…" : "Thought,"} ${plural(told.filter((step) => step.thought).length, "token")}`;
    if (!told.length) return;
    const rate = 1000 * (told.length - 1) / message.spent;
    const all = [plural(told.length, "token"), rate > 0 && rate < Infinity && `${fixed(rate, 1)} tokens/s`, `first after ${fixed(message.first / 1000, 2)} s`];
    facts.textContent = all.filter(Boolean).join(" · ");
  }
  /** List the words on which the members disagree most, and underline them in the text. */
  function contest(turn) {
    const { content } = turn.message;
    const found = disputes.words(content, turn.steps);
    turn.ranges = disputes.ranges(turn.prose, content, found);
    CSS.highlights?.set("disputed", new Highlight(...turns.flatMap(({ ranges }) => [...ranges?.values() ?? []])));
    turn.contest.hidden = !found.length;
    const worst = found.slice(0, LISTED).map(({ text, index, bits }) => {
      const jump = button("", undefined, () => keep(turn, index));
      return add(words(jump, text), " ", make("span", "much", fixed(bits, 2)));
    });
    turn.contest.replaceChildren(add(make("summary"), make("u", "", "Where they disagreed"), `: ${plural(found.length, "word")}`),
      make("p", "aside", disputes.MEANING), add(make("div", "tools"), ...worst));
  }
  // The end of the answer stays in sight until the user scrolls up or keeps a token. Not being at
  // the end says nothing: text may have come since the last frame.
  let [follow, height] = [true, 0];
  function scrolled() {
    const talk = $("talk");
    if (talk.scrollTop < height) follow = false;
    if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 24) follow = true;
    height = talk.scrollTop;
  }

  // The card: a pointer shows a token for the moment, a click or a key keeps it

  const NONE = { turn: null, index: -1 };
  let [kept, shown] = [NONE, NONE];
  function show(at) {
    if (at.turn === shown.turn && at.index === shown.index) return;
    shown.turn?.tokens[shown.index]?.classList.remove("current");
    shown = at;
    $("card").hidden = at.turn === null;
    const range = at.turn?.ranges.get(at.index);
    CSS.highlights?.set("current", new Highlight(...(range ? [range] : [])));
    if (at.turn === null) return;
    at.turn.tokens[at.index]?.classList.add("current");
    $("about").replaceChildren(...describe(at.turn.steps[at.index], members, `token ${at.index + 1}`));
    $("card").scrollTop = 0;
  }
  function hide() {
    kept = NONE;
    show(NONE);
  }
  function keep(turn, index, aloud) {
    follow = false;
    kept = { turn, index };
    show(kept);
    const place = isText(turn) ? turn.ranges.get(index)?.startContainer.parentElement : turn.tokens[index];
    place?.scrollIntoView({ block: "nearest" });
    if (aloud) say(spell(turn.steps[index], members));
  }
  const listen = (turn, box) => walk(box, {
    // A finger scrolls, and on a narrow screen the card would cover what is pointed at.
    hovers: ({ pointerType }) => pointerType !== "touch" && !narrow.matches && !document.querySelector(".side"),
    show: (index) => show(index < 0 ? kept : { turn, index }),
    kept: () => (kept.turn === turn ? kept.index : -1),
    keep: (index, aloud) => keep(turn, index, aloud),
  });

  // The frame

  const DRAFT = "eva-local-draft";
  /** Give what is being written its room, and keep it for a reload. */
  function grow() {
    $("words").style.height = "auto";
    $("words").style.height = `${$("words").scrollHeight}px`;
    delete session[DRAFT];
    if ($("words").value) session[DRAFT] = $("words").value;
  }
  function unfold(open) {
    $("settings").hidden = !open;
    $("fold").ariaExpanded = String(open);
  }
  /** Open or close the list of conversations: beside the talk, or over it where there is no room. */
  function aside(open) {
    const had = $("side").contains(document.activeElement);
    $("side").hidden = !open;
    $("shade").hidden = !open || !slim.matches;
    // What lies under it cannot be reached.
    for (const under of document.querySelectorAll("header, #talk, .dock")) under.inert = open && slim.matches;
    $("menu").ariaExpanded = String(open);
    if (had && !open) $("menu").focus();
  }
  $("words").addEventListener("input", grow);
  $("words").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("key").addEventListener("submit", (event) => {
    event.preventDefault();
    session[SECRET] = $("secret").value.trim();
    $("secret").value = "";
    $("key").hidden = true;
    load();
    $("words").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const writes = event.target.closest?.("input:not([type=radio], [type=checkbox]), textarea, select");
    const isSearch = event.key === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
    if (isSearch || (event.key === "/" && !writes && !event.ctrlKey && !event.metaKey && !event.altKey)) {
      event.preventDefault();
      aside(true);
      $("find").focus();
      $("find").select();
    } else if (event.key === "Escape") {
      if (event.target === $("find") && $("find").value) {
        $("find").value = "";
        list();
      } else if (slim.matches && !$("side").hidden) aside(false);
      else if (shown.turn) hide();
      else if (running) stop();
      else if ($("side").contains(event.target)) $("words").focus();
    }
  });
  const unfinished = () => turns.filter(({ node }) => node.classList.contains("running")).map(({ message }) => traceOf(message.id));
  addEventListener("pagehide", () => running && store.saveNow(chat, unfinished()));
  slim.addEventListener("change", () => aside(!slim.matches && prefs.side !== "closed"));
  $("menu").addEventListener("click", () => {
    aside($("side").hidden);
    if (!slim.matches) prefer({ side: $("side").hidden ? "closed" : "open" });
    else if (!$("side").hidden) $("find").focus();
  });
  $("shade").addEventListener("click", () => aside(false));
  $("find").addEventListener("input", list);
  $("export").addEventListener("click", () => exported(newest(), "eva-local-chats"));
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    for (const file of $("file").files) await imported(file);
    $("file").value = "";
  });
  $("undo").addEventListener("click", () => {
    $("toast").hidden = true;
    undo();
    $("words").focus();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", restart);
  $("close").addEventListener("click", hide);
  $("fold").addEventListener("click", () => unfold($("settings").hidden));
  $("settings").parentNode.addEventListener("change", ({ target }) => {
    prefer(chosen());
    if (target === $("model")) introduce();
    else limit();
  }, true);
  $("view").addEventListener("change", async ({ target }) => {
    prefer({ view: target.id });
    hide();
    for (const turn of turns) turn.asText = undefined;
    // What was at the top stays there.
    const first = turns.find(({ node }) => node.getBoundingClientRect().bottom > $("talk").getBoundingClientRect().top + 20);
    await look();
    if (!follow) first?.node.scrollIntoView();
  });
  $("talk").addEventListener("scroll", scrolled, { passive: true });
  if (["light", "dark"].includes(prefs.theme)) $("theme").value = prefs.theme;
  paintIn($("theme").value);
  $("theme").addEventListener("change", () => paintIn($("theme").value));
  if (prefs.view === "as-tokens") $("as-tokens").checked = true;
  setAll(prefs);
  $("words").value = session[DRAFT] ?? "";
  grow();
  aside(!slim.matches && prefs.side !== "closed");
  look();
  load();
  remembered();
})();

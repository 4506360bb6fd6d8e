// Conversations in this browser: texts in one store of IndexedDB, what is known of each token in another.
const store = (() => {
  const NAME = "eva-local";
  const STORES = ["chats", "traces"];
  // A deleted conversation can be taken back for as long, in whatever tab.
  const KEPT_MS = 60_000;

  const opened = new Promise((done, failed) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => STORES.forEach((each) => asked.result.createObjectStore(each, { keyPath: "id" }));
    asked.onerror = () => failed(asked.error);
    asked.onsuccess = () => {
      asked.result.onversionchange = () => asked.result.close();
      done(asked.result);
    };
  });
  let base = null;
  opened.then((db) => { base = db; }, () => {});
  /** Do some work in one transaction: all of it is kept, or nothing. */
  async function within(mode, work) {
    const db = await opened;
    return new Promise((done, failed) => {
      const deal = db.transaction(STORES, mode);
      let told;
      deal.oncomplete = () => done(told);
      deal.onabort = () => failed(deal.error ?? new Error("it was broken off"));
      work(deal.objectStore("chats"), deal.objectStore("traces"), (value) => { told = value; });
    });
  }
  const heard = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
  const tell = (id) => heard?.postMessage(id);

  /** Return what fits, the ids of what is deleted, and how many are bad; what was deleted some time ago goes. */
  async function all() {
    const found = await within("readonly", (chats, _, told) => {
      chats.getAll().onsuccess = ({ target }) => told(target.result);
    });
    const gone = found.filter((chat) => chat.deleted);
    const old = gone.filter((chat) => chat.deleted < Date.now() - KEPT_MS);
    if (old.length) remove(old).catch(() => {});
    const rest = found.filter((chat) => !chat.deleted);
    const fitting = rest.map(fit).filter(Boolean);
    return { fitting, gone: gone.map(({ id }) => id), bad: rest.length - fitting.length };
  }
  /** Keep a conversation; messages that another tab added to it are taken in, not overwritten. */
  async function save(chat, kept = []) {
    await within("readwrite", (chats, traces) => {
      chats.get(chat.id).onsuccess = ({ target }) => {
        join(chat, fit(target.result));
        chats.put(chat);
      };
      kept.forEach((trace) => traces.put(trace));
    });
    tell(chat.id);
  }
  /** Begin to keep a conversation, and wait for nothing: the page may be about to close. */
  function saveNow(chat) {
    try {
      const deal = base.transaction(STORES, "readwrite");
      deal.objectStore("chats").put(chat);
      deal.commit();
    } catch {
      // The end of the answer tries it again, and says what is wrong.
    }
  }
  function join(chat, other) {
    for (const [id, message] of Object.entries(other?.messages ?? {})) chat.messages[id] ??= message;
  }
  function remove(gone) {
    return within("readwrite", (chats, traces) => {
      for (const { id, messages } of gone) {
        chats.delete(id);
        Object.keys(messages ?? {}).forEach((each) => traces.delete(each));
      }
    });
  }
  /** Return what is known of the tokens of messages, by their ids. */
  async function traces(ids) {
    const found = await within("readonly", (_, kept, told) => {
      const list = [];
      ids.forEach((id) => { kept.get(id).onsuccess = ({ target }) => list.push(target.result); });
      told(list);
    });
    return found.map(fitTrace).filter(Boolean);
  }

  // What comes from a file or an old store may be anything.
  const ID = /^[\da-f]{16}$/;
  const TEXTS = ["content", "thought", "model", "finish", "note"];
  const COUNTS = ["at", "tokens", "thoughts", "filtered", "first", "spent"];
  const SETTINGS = ["model", "system", "temperature", "max_tokens", "seed", "thinking"];
  const VERDICTS = ["stayed", "filtered", "absent"];
  const isText = (value) => typeof value === "string";
  const isCount = (value) => Number.isFinite(value) && value >= 0;
  const isThing = (value) => typeof value === "object" && value !== null;
  const isId = (value) => isText(value) && ID.test(value);
  const link = (value) => (isId(value) ? value : null);
  function fitMessage(raw, id) {
    if (!isThing(raw) || raw.id !== id || !isId(id) || !["user", "assistant"].includes(raw.role) || !isText(raw.content)) return null;
    const isShare = (pair) => Array.isArray(pair) && pair.length === 2 && isText(pair[0]) && isCount(pair[1]);
    return {
      id, parent: link(raw.parent), role: raw.role, next: link(raw.next), stopped: raw.stopped === true,
      ...Object.fromEntries(TEXTS.map((name) => [name, isText(raw[name]) ? raw[name] : ""])),
      ...Object.fromEntries(COUNTS.map((name) => [name, isCount(raw[name]) ? raw[name] : 0])),
      carried: Array.isArray(raw.carried) ? raw.carried.filter(isShare) : [],
    };
  }
  /** Return a conversation of the right form, or null. */
  function fit(raw) {
    if (!isThing(raw) || !isId(raw.id) || !isCount(raw.created) || !isCount(raw.changed) || !isThing(raw.messages)) return null;
    const messages = {};
    for (const [id, each] of Object.entries(raw.messages)) {
      messages[id] = fitMessage(each, id);
      if (!messages[id]) return null;
    }
    // Questions and answers take turns, so every message hangs on the first ones, and there is no ring.
    const ok = Object.values(messages).every(({ parent, role }) =>
      (parent === null ? role === "user" : messages[parent] && messages[parent].role !== role));
    if (!ok) return null;
    const said = isThing(raw.settings) ? SETTINGS.filter((name) => isText(raw.settings[name])) : [];
    const settings = Object.fromEntries(said.map((name) => [name, raw.settings[name]]));
    const title = isText(raw.title) ? raw.title : "";
    return { id: raw.id, title, created: raw.created, changed: raw.changed, next: link(raw.next), settings, messages };
  }
  const isTop = (top) => Array.isArray(top) && top.every((one) =>
    Array.isArray(one) && isText(one[0]) && isCount(one[1]) && typeof one[2] === "boolean");
  function isStep(step, isMember) {
    return isThing(step) && isText(step.shown) && isText(step.hex) && isCount(step.probability) && isTop(step.top)
      && (step.carrier === -1 || isMember(step.carrier)) && typeof step.thought === "boolean" && Array.isArray(step.ballots)
      && step.ballots.every((ballot) => isThing(ballot) && isMember(ballot.member) && isTop(ballot.top)
        && isCount(ballot.chosen) && isCount(ballot.weight) && isText(ballot.reason) && VERDICTS.includes(ballot.verdict));
  }
  function fitTrace(raw) {
    if (!isThing(raw) || !isId(raw.id) || !Array.isArray(raw.names) || !raw.names.every(isText) || !Array.isArray(raw.steps)) return null;
    const isMember = (value) => Number.isInteger(value) && value >= 0 && value < raw.names.length;
    return raw.steps.every((step) => isStep(step, isMember)) ? { id: raw.id, names: raw.names, steps: raw.steps } : null;
  }

  return { all, save, saveNow, traces, join, fit, fitTrace, heard };
})();

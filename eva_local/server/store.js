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
    heard?.postMessage(chat.id);
  }
  /** Begin to keep a conversation, and wait for nothing: the page may be about to close. */
  function saveNow(chat, kept = []) {
    try {
      const deal = base.transaction(STORES, "readwrite");
      deal.objectStore("chats").put(chat);
      kept.forEach((trace) => deal.objectStore("traces").put(trace));
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
  const isText = (value) => typeof value === "string";
  const isFlag = (value) => typeof value === "boolean";
  const isCount = (value) => Number.isFinite(value) && value >= 0;
  const isId = (value) => isText(value) && /^[\da-f]{16}$/.test(value);
  const isLink = (value) => value === null || isId(value);
  const among = (...values) => (value) => values.includes(value);
  const tuple = (...shapes) => (value) => Array.isArray(value) && value.length === shapes.length && shapes.every((one, i) => one(value[i]));
  const optional = (shape) => (value) => value === undefined || shape(value);
  const TOP = [tuple(isText, isCount, isFlag)];
  const BALLOT = {
    member: Number.isInteger, chosen: isCount, weight: isCount, reason: isText, verdict: among("stayed", "filtered", "absent"), top: TOP,
  };
  const STEP = { shown: isText, hex: isText, thought: isFlag, probability: isCount, apart: optional(isCount), carrier: Number.isInteger, top: TOP, ballots: [BALLOT] };
  const MESSAGE = {
    id: isId, parent: isLink, next: isLink, role: among("user", "assistant"), content: isText, thought: isText, model: isText,
    finish: isText, note: isText, stopped: isFlag, at: isCount, first: isCount, spent: isCount,
    // Older conversations have none of these.
    side: optional(isText), used: optional(isCount),
  };
  const CHAT = { id: isId, title: isText, created: isCount, changed: isCount, next: isLink, settings: {}, messages: {} };
  /** Return whether a value is of a shape: what a function finds right, a list of such, or a thing with such parts. */
  function isLike(value, shape) {
    if (typeof shape === "function") return shape(value);
    if (Array.isArray(shape)) return Array.isArray(value) && value.every((one) => isLike(one, shape[0]));
    return typeof value === "object" && value !== null && !Array.isArray(value) && Object.entries(shape).every(([name, part]) => isLike(value[name], part));
  }
  /** Return a conversation of the right form, or null. */
  function fit(raw) {
    if (!isLike(raw, CHAT) || !Object.values(raw.settings).every(isText)) return null;
    const { traces: _, deleted: __, ...chat } = raw;
    // Questions and answers take turns, so every message hangs on the first ones, and there is no ring.
    const isPlaced = ({ parent, role }) => (parent === null ? role === "user" : chat.messages[parent]?.role === (role === "user" ? "assistant" : "user"));
    const ok = Object.entries(chat.messages).every(([id, each]) => isLike(each, MESSAGE) && each.id === id && isPlaced(each));
    return ok ? chat : null;
  }
  function fitTrace(raw) {
    if (!isLike(raw, { id: isId, names: [isText], steps: [STEP] })) return null;
    const isKnown = (member) => member >= -1 && member < raw.names.length;
    const ok = raw.steps.every(({ carrier, ballots }) => isKnown(carrier) && ballots.every(({ member }) => member >= 0 && isKnown(member)));
    return ok ? raw : null;
  }

  return { all, save, saveNow, traces, join, fit, fitTrace, heard };
})();

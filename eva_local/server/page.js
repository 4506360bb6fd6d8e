(() => {
  const { make, add, colour, percent, plural, fixed, glyphs, token, spoken, swatch, describe, vertical, moved } = eva;
  const SECRET = "eva-local-key";
  const RETRY_MS = 2000;
  const COPIED_MS = 1500;
  const SETTINGS = ["temperature", "max_tokens", "seed"];
  const $ = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 60rem)");

  // Names in the order in which they were met: the place gives a member its letter and colour.
  const members = [];
  function place(name) {
    const found = members.indexOf(name);
    return found < 0 ? members.push(name) - 1 : found;
  }

  /** What went wrong, in words for the user. */
  class Trouble extends Error {
    constructor(words, status = 0) {
      super(words);
      this.status = status;
    }
  }
  const say = (words) => { $("said").textContent = words; };
  function trouble(words) {
    $("trouble").hidden = !words;
    if ($("trouble").textContent !== words) $("trouble").textContent = words;
  }

  // The server

  function headers() {
    const secret = sessionStorage.getItem(SECRET);
    return secret ? { Authorization: `Bearer ${secret}` } : {};
  }
  async function request(path, options = {}) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server cannot be reached. Is eva-local serve still running?");
    }
    if (response.status === 401) throw new Trouble(askForKey(), 401);
    if (!response.ok) throw new Trouble(await refusal(response), response.status);
    return response;
  }
  async function refusal(response) {
    const told = await response.json().then((body) => body.error?.message, () => undefined);
    const said = typeof told === "string" && told ? told.replace(/[.\s]+$/, "") : "";
    const reasoned = (words) => (said ? `${words}: ${said}.` : `${words}.`);
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status === 503 || response.status === 429) {
      const again = seconds > 0 ? ` Try again in ${seconds} s.` : " Try again soon.";
      return reasoned("The server is busy") + again;
    }
    if (response.status < 500) return reasoned("The server refused the request");
    return reasoned(`The server failed (${response.status})`);
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
    const refused = sessionStorage.getItem(SECRET) !== null;
    sessionStorage.removeItem(SECRET);
    $("key").hidden = false;
    $("secret").focus();
    return refused ? "The server does not know this API key." : "The server wants its API key.";
  }
  async function load() {
    try {
      const { data } = await (await request("v1/models")).json();
      offer(data);
      trouble("");
    } catch (error) {
      trouble(error.status === 503 ? "The server is still opening its models."
        : error instanceof Trouble ? error.message : "The server's list of models cannot be read.");
      if ($("key").hidden) setTimeout(load, RETRY_MS);
    }
  }
  function offer(models) {
    cast.clear();
    for (const { id, members: names } of models) {
      cast.set(id, names);
      names.forEach(place);
    }
    $("model").replaceChildren(...models.map(({ id, members: names }) => {
      const how = id.includes("/") ? " alone" : names.length > 1 ? ` (${names.length} members together)` : "";
      const option = make("option", "", id + how);
      option.value = id;
      return option;
    }));
    introduce();
    ready();
  }
  const cast = new Map();
  function introduce() {
    const names = cast.get($("model").value) ?? [];
    $("empty-words").textContent =
      names.length > 1 ? "These models write the answer together. Each token has the colour of the member that carried it; "
        + "point at one, or tap it, to see what each proposed."
        : "One model answers alone.";
    $("cast").replaceChildren(...names.map((name) => glyphs(add(make("li"), swatch(place(name))), name, true)));
  }

  // The conversation: questions and answers in turn

  const turns = [];
  let running = null;
  function ready() {
    $("send").disabled = !$("model").value;
    $("send").hidden = running !== null;
    $("stop").hidden = running === null;
    for (const button of document.querySelectorAll(".again")) button.disabled = running !== null;
  }
  /** Return what is asked: a question that got no answer is not asked again with the next one. */
  function messages() {
    const system = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
    const told = turns.flatMap(({ question, answer }, i) => {
      const asked = { role: "user", content: question };
      if (i === turns.length - 1) return [asked];
      return answer.content ? [asked, { role: "assistant", content: answer.content }] : [];
    });
    return [...system, ...told];
  }
  function body() {
    const thinking = $("thinking").value;
    const settings = SETTINGS.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]);
    return JSON.stringify({
      model: $("model").value,
      messages: messages(),
      ...Object.fromEntries(settings),
      ...(thinking === "auto" ? {} : { thinking }),
      stream: true,
      trace: true,
    });
  }
  function unfit() {
    const wrong = [...$("composer").elements].find((field) => !field.checkValidity());
    if (wrong) {
      unfold(true);
      wrong.reportValidity();
    }
    return wrong !== undefined;
  }
  function send() {
    const question = $("words").value;
    if (!question.trim() || running || $("send").disabled || unfit()) return;
    $("words").value = "";
    grow();
    $("empty").hidden = true;
    const asked = add(make("article", "turn"), make("h2", "eyebrow", "You"), glyphs(make("div", "said"), question, true));
    $("turns").append(asked);
    turns.push({ question, asked, answer: null });
    answer();
  }
  function again() {
    if (running || unfit()) return;
    forget(turns.at(-1).answer);
    answer();
  }
  async function answer() {
    const turn = newAnswer($("model").value);
    turns.at(-1).answer = turn;
    $("turns").append(turn.node);
    running = new AbortController();
    const { signal } = running;
    ready();
    follow = true;
    paint(turn);
    let note = "";
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: body(), signal };
      const response = await request("v1/chat/completions", options);
      await events(response.body, (chunk) => receive(turn, chunk));
      if (!turn.finish) throw new Trouble("The connection ended early: the answer is not complete.");
    } catch (error) {
      note = signal.aborted ? "" : error instanceof Trouble ? error.message
        : "The connection broke off: the answer is not complete.";
    }
    if (turns.at(-1)?.answer !== turn) return;
    running = null;
    end(turn, note, signal.aborted);
  }
  function end(turn, note, stopped) {
    turn.node.classList.remove("running");
    turn.waiting.remove();
    turn.thought?.fold.classList.remove("thinking");
    if (note) notice(turn, note, "note");
    else if (stopped) notice(turn, "Stopped.", "note calm");
    else if (turn.finish === "length") {
      const where = turn.thought && !turn.content ? " while thinking" : "";
      notice(turn, `Cut off${where}: max tokens are reached, or the members have no room for more.`, "note calm");
    }
    turn.again.textContent = note && !turn.content ? "Try again" : "Regenerate";
    turn.copy.hidden = !turn.content;
    turn.tools.hidden = false;
    hint();
    say(note || (stopped ? "Stopped." : `Answer complete, ${plural(turn.count, "token")}.`));
    ready();
    paint(turn);
  }
  function notice(turn, words, className) {
    turn.foot.before(make("p", className, words));
  }
  function stop() {
    running?.abort();
  }
  function restart() {
    stop();
    running = null;
    turns.length = 0;
    $("turns").replaceChildren();
    $("empty").hidden = false;
    hide();
    hint();
    ready();
    $("words").focus();
  }
  function forget(turn) {
    if (kept.turn === turn) hide();
    turn.node.remove();
  }

  // An answer

  function newAnswer(model) {
    const turn = {
      steps: [], tokens: [], thought: null, carried: [], filtered: 0, count: 0, content: "", finish: "",
      began: performance.now(), first: 0, last: 0, shares: [],
      node: make("article", "turn running"), text: make("div", "text"), foot: make("div", "foot"),
      waiting: make("span", "waiting", "reading the prompt…"),
      bar: make("div", "shares"), legend: make("ul", "legend"), dotted: make("li", "dotted"),
      tools: make("div", "tools"), facts: make("span", "facts"),
      copy: make("button", "copy", "Copy"), again: make("button", "again", "Regenerate"),
    };
    turn.text.tabIndex = 0;
    turn.text.setAttribute("role", "group");
    turn.text.setAttribute("aria-label", "Answer: arrow keys go from token to token");
    turn.bar.setAttribute("aria-hidden", "true");
    turn.bar.hidden = turn.dotted.hidden = turn.tools.hidden = true;
    turn.copy.type = turn.again.type = "button";
    turn.copy.addEventListener("click", () => copy(turn));
    turn.again.addEventListener("click", again);
    turn.text.append(turn.waiting);
    turn.legend.append(turn.dotted);
    add(turn.tools, turn.copy, turn.again, turn.facts);
    add(turn.foot, turn.bar, turn.legend, turn.tools);
    add(turn.node, glyphs(make("h2", "eyebrow"), model, true), turn.text, turn.foot);
    listen(turn, turn.text);
    return turn;
  }
  /** Return where tokens go: those of a thought into a fold of their own, before the answer. */
  function boxOf(turn, isThought) {
    if (!isThought) {
      turn.thought?.fold.classList.remove("thinking");
      return turn.text;
    }
    if (!turn.thought) {
      const [fold, summary, box] = [make("details", "thought thinking"), make("summary"), make("div", "text")];
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Thought: arrow keys go from token to token");
      turn.text.before(add(fold, summary, box));
      turn.thought = { fold, summary, box, count: 0 };
      listen(turn, box);
    }
    return turn.thought.box;
  }
  function receive(turn, chunk) {
    if (chunk.error) throw new Trouble(`The server gave up: ${chunk.error.message}`);
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const thought = choice.delta?.reasoning_content ?? "";
    const written = choice.delta?.content ?? "";
    turn.content += written;
    turn.finish = choice.finish_reason ?? turn.finish;
    const said = thought || written;
    if (choice.eva) count(turn, stepOf(choice.eva, said));
    else if (said) boxOf(turn, thought !== "").append(glyphs(make("span"), said, true));
    if (said || choice.eva) paint(turn);
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
      carrier: vote.decided_by ? place(vote.decided_by) : -1,
      top: top(vote.top),
      ballots: vote.members.map((ballot) => ({
        member: place(ballot.name),
        top: top(ballot.top),
        chosen: ballot.chosen,
        // Who was not asked has no candidates.
        verdict: ballot.stayed ? "stayed" : ballot.top.length ? "filtered" : "absent",
        reason: ballot.reason,
        weight: ballot.weight,
      })),
    };
  }
  /** Append one token; nothing that stands already is touched. */
  function count(turn, step) {
    turn.waiting.remove();
    turn.last = performance.now();
    turn.first ||= turn.last;
    const filtered = step.ballots.some((ballot) => ballot.verdict === "filtered");
    const box = boxOf(turn, step.thought);
    const before = box.lastChild === turn.tokens.at(-1) ? turn.steps.at(-1) : undefined;
    const node = token(make("span", `token ${colour(step.carrier)}`), step, true);
    node.classList.toggle("filtered", filtered);
    // A character that several tokens make is shown by the last of them.
    node.classList.toggle("begun", step.hex !== "" && step.shown === "");
    node.classList.toggle("ended", before !== undefined && before.hex !== "" && before.shown === "");
    node.dataset.index = String(turn.steps.length);
    turn.steps.push(step);
    turn.tokens.push(node);
    box.append(node);
    if (step.hex === "") return;
    turn.count += 1;
    if (step.thought) turn.thought.count += 1;
    turn.filtered += filtered;
    for (const ballot of step.ballots) turn.carried[ballot.member] ??= 0;
    if (step.carrier >= 0) turn.carried[step.carrier] = (turn.carried[step.carrier] ?? 0) + 1;
  }
  async function copy(turn) {
    try {
      await navigator.clipboard.writeText(turn.content);
    } catch {
      // Without TLS on another machine than this one, browsers keep the clipboard closed.
      const held = make("textarea", "unseen");
      held.value = turn.content;
      document.body.append(held);
      held.select();
      document.execCommand("copy");
      held.remove();
      turn.copy.focus();
    }
    turn.copy.textContent = "Copied";
    say("Copied.");
    setTimeout(() => { turn.copy.textContent = "Copy"; }, COPIED_MS);
  }

  // What follows the tokens once a frame: shares, figures, and the place on the screen

  const unpainted = new Set();
  function paint(turn) {
    if (!unpainted.size) requestAnimationFrame(painted);
    unpainted.add(turn);
  }
  function painted() {
    for (const turn of unpainted) figures(turn);
    unpainted.clear();
    if (!follow) return;
    $("talk").scrollTop = $("talk").scrollHeight;
    height = $("talk").scrollTop;
  }
  function figures(turn) {
    turn.carried.forEach((carried, member) => {
      turn.shares[member] ??= shareOf(turn, member);
      const { fill, much } = turn.shares[member];
      const share = turn.count ? carried / turn.count : 0;
      fill.style.width = `${100 * share}%`;
      much.textContent = percent(share);
    });
    if (turn.thought) {
      const is = turn.thought.fold.classList.contains("thinking") ? "Thinking…" : "Thought,";
      turn.thought.summary.textContent = `${is} ${plural(turn.thought.count, "token")}`;
    }
    turn.bar.hidden = !turn.count;
    turn.dotted.hidden = !turn.filtered;
    turn.dotted.textContent = `${plural(turn.filtered, "token")} with a filtered vote`;
    if (!turn.count) return;
    const facts = [plural(turn.count, "token"), `first after ${fixed((turn.first - turn.began) / 1000, 2)} s`];
    const seconds = (turn.last - turn.first) / 1000;
    if (turn.count > 1 && seconds > 0) facts.splice(1, 0, `${fixed((turn.count - 1) / seconds, 1)} tokens/s`);
    turn.facts.textContent = facts.join(" · ");
  }
  function shareOf(turn, member) {
    const fill = make("div", `fill ${colour(member)}`);
    const much = make("span", "much");
    turn.bar.append(fill);
    turn.dotted.before(add(glyphs(add(make("li"), swatch(member)), members[member], true), " ", much));
    return { fill, much };
  }
  // The end of the answer stays in sight until the user scrolls up or keeps a token. Not being at
  // the end says nothing: text may have come since the last frame.
  let follow = true;
  let height = 0;
  function scrolled() {
    const talk = $("talk");
    if (talk.scrollTop < height) follow = false;
    if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 24) follow = true;
    height = talk.scrollTop;
  }

  // The card: a pointer shows a token for the moment, a click or a key keeps it

  const NONE = { turn: null, index: -1 };
  let kept = NONE;
  let shown = NONE;
  function show(at) {
    if (at.turn === shown.turn && at.index === shown.index) return;
    shown.turn?.tokens[shown.index].classList.remove("current");
    shown = at;
    $("card").hidden = at.turn === null;
    hint();
    if (at.turn === null) return;
    at.turn.tokens[at.index].classList.add("current");
    $("about").replaceChildren(...describe(at.turn.steps[at.index], members, `token ${at.index + 1}`));
    $("card").scrollTop = 0;
  }
  function hint() {
    $("hint").hidden = shown.turn !== null || !turns.some(({ answer }) => answer?.tokens.length);
  }
  function keep(turn, index) {
    if (index < 0 || index >= turn.tokens.length) return;
    follow = false;
    kept = { turn, index };
    show(kept);
    turn.tokens[index].scrollIntoView({ block: "nearest" });
  }
  function hide() {
    kept = NONE;
    show(NONE);
  }
  function listen(turn, box) {
    const at = (event) => {
      const node = event.target.closest?.(".token");
      return node ? Number(node.dataset.index) : -1;
    };
    box.addEventListener("pointerover", (event) => {
      // A finger scrolls, and on a narrow screen the card would cover what is pointed at.
      if (event.pointerType === "touch" || narrow.matches || !moved(event)) return;
      show(at(event) < 0 ? kept : { turn, index: at(event) });
    });
    box.addEventListener("pointerleave", () => show(kept));
    box.addEventListener("click", (event) => keep(turn, at(event)));
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
      event.preventDefault();
      const all = [...box.querySelectorAll(".token")];
      const here = kept.turn === turn ? all.indexOf(turn.tokens[kept.index]) : -1;
      keep(turn, Number(all[KEYS[event.key](all, here)]?.dataset.index ?? -1));
      if (kept.turn === turn) say(label(turn.steps[kept.index]));
    });
  }
  const KEYS = {
    ArrowRight: (_, here) => here + 1,
    ArrowLeft: (_, here) => here - 1,
    ArrowDown: (all, here) => (here < 0 ? 0 : vertical(all, here, 1)),
    ArrowUp: (all, here) => (here < 0 ? 0 : vertical(all, here, -1)),
    Home: () => 0,
    End: (all) => all.length - 1,
  };
  function label(step) {
    const filtered = step.ballots.filter((ballot) => ballot.verdict === "filtered").length;
    const carrier = step.carrier < 0 ? "" : `, carried by ${members[step.carrier]}`;
    return `${spoken(step)}${carrier}${filtered ? `, ${plural(filtered, "vote")} filtered` : ""}`;
  }

  // The frame

  function grow() {
    $("words").style.height = "auto";
    $("words").style.height = `${$("words").scrollHeight}px`;
  }
  function unfold(open) {
    $("settings").hidden = !open;
    $("fold").setAttribute("aria-expanded", String(open));
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
    sessionStorage.setItem(SECRET, $("secret").value.trim());
    $("secret").value = "";
    $("key").hidden = true;
    trouble("");
    load();
    $("words").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    if (shown.turn) hide();
    else stop();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", restart);
  $("close").addEventListener("click", hide);
  $("fold").addEventListener("click", () => unfold($("settings").hidden));
  $("model").addEventListener("change", introduce);
  $("talk").addEventListener("scroll", scrolled, { passive: true });
  for (const [box, name, on] of [["coloured", "plain", false], ["mono", "mono", true]]) {
    $(box).addEventListener("change", () => $("talk").classList.toggle(name, $(box).checked === on));
  }
  load();
})();

(() => {
  const { make, add, colour, percent, plural, fixed, glyphs, tokenOf, isFiltered, spell, button, bar, swatch, describe, walk, moved } = eva;
  const data = JSON.parse(document.getElementById("data").textContent);
  const { members, summary } = data;
  const steps = stepsOf(data.steps);
  const BINS = 300;
  const $ = (id) => document.getElementById(id);
  const main = document.querySelector("main");
  // The thought's tokens, and the answer's.
  const thoughts = steps.filter((step) => step.thought && step.hex).length;
  const boxes = [$("thought").querySelector(".text"), $("text")];

  /** Return the steps of the file's lines, as `eva` describes them. */
  function stepsOf(lines) {
    let open = [];
    return lines.map((line, i) => {
      const chosen = line.hex;
      const top = (candidates) => candidates.map(({ hex, probability }) => [decoded(bytesOf(hex), true)[0], probability, hex === chosen]);
      // A character that several pieces make is shown by the last of them, the whole one.
      const [shown, rest] = decoded([...open, ...bytesOf(chosen)], i + 1 === lines.length || textOf(line) !== textOf(lines[i + 1]));
      open = rest;
      const ballots = line.ballots.map(({ member, stayed, seconds, ...vote }) => ({
        ...vote,
        member: members.indexOf(member),
        top: top(vote.top),
        // A member that was not asked (a gate) has no candidates and cost nothing.
        verdict: stayed ? "stayed" : vote.top.length || seconds > 0 ? "filtered" : "absent",
        ms: 1000 * seconds,
      }));
      return {
        shown,
        whole: !rest.length,
        hex: chosen.replace(/..(?=.)/g, "$& "),
        thought: line.reasoning !== null,
        probability: line.probability,
        apart: line.disagreement,
        carrier: members.indexOf(line.carrier),
        disputed: line.dissenters.length > 0 || ballots.some(({ verdict }) => verdict === "filtered"),
        top: top(line.top),
        ballots,
      };
    });
  }
  /** Return which text a line is of: thought and answer are two, and so are thoughts of members by themselves. */
  function textOf({ reasoning, ballots }) {
    return `${reasoning === null} ${ballots.length === 1 ? ballots[0].member : ""}`;
  }
  function bytesOf(hex) {
    return (hex.match(/../g) ?? []).map((byte) => parseInt(byte, 16));
  }
  /** Return the text of bytes, lone surrogates for those that are no UTF-8, and what may be half a character behind it. */
  function decoded(bytes, isAll) {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    let text = "";
    for (let at = 0; at < bytes.length;) {
      const size = [0xc2, 0xe0, 0xf0, 0xf5].filter((first) => bytes[at] >= first).length % 4 + 1;
      const part = bytes.slice(at, at + size);
      const isBegun = size > part.length && part.slice(1).every((byte) => byte >> 6 === 2);
      if (isBegun && !isAll) return [text, part];
      try {
        text += decoder.decode(Uint8Array.from(part));
        at += size;
      } catch {
        text += String.fromCharCode(0xdc00 + bytes[at]);
        at += 1;
      }
    }
    return [text, []];
  }

  function header() {
    document.title = `${data.ensemble}: trace`;
    glyphs($("ensemble"), data.ensemble, true);
    const facts = [
      plural(summary.tokens, "token"),
      data.finish ? `finished: ${data.finish}` : "interrupted",
      `${summary.disputed} disputed (${percent(summary.disputed / Math.max(steps.length, 1))})`,
      `mean fused probability ${fixed(summary.probability, 2)}`,
    ];
    const usage = data.usage;
    if (thoughts) facts.splice(1, 0, `${thoughts} of them thought`);
    if (usage) {
      const rate = usage.steps / Math.max(usage.seconds - usage.first_seconds, 1e-9);
      if (usage.steps > 1) facts.push(`${fixed(rate, 1)} tokens/s`);
      facts.push(`first after ${fixed(usage.first_seconds, 2)} s`);
      if (usage.drafted) facts.push(`${usage.accepted} of ${usage.drafted} drafted tokens came`);
      if (usage.steps_alone) facts.push(`${usage.steps_alone} by the pivot alone`);
    }
    $("facts").textContent = facts.join(" · ");
    for (const note of data.notes) $("notes").append(glyphs(make("p", "note"), note, true));
    const turns = typeof data.prompt === "string" ? [{ role: "text", content: data.prompt }] : data.prompt;
    for (const turn of turns) {
      const row = make("dl", "turn");
      row.style.margin = "0 0 0.4rem";
      add($("prompt"), add(row, make("dt", "", turn.role), glyphs(make("dd"), turn.content, true)));
    }
    if ($("prompt").scrollHeight > $("prompt").clientHeight) $("prompt").tabIndex = 0;
    $("plain").querySelector("pre").textContent = data.steps.map((line) => line.text).join("");
    const list = $("settings").querySelector("dl");
    for (const [key, value] of Object.entries(data.settings)) {
      const written = typeof value === "string" ? value : JSON.stringify(value);
      add(list, glyphs(make("dt"), key, true), glyphs(make("dd"), written, true));
    }
  }

  function legend() {
    const total = Math.max(summary.members.reduce((sum, member) => sum + member.carried, 0), 1);
    summary.members.forEach((member, index) => {
      const title = "Colour only the tokens that this member carried";
      const lit = button("spotlight", undefined, () => spotlight(lit, index), { title, ariaPressed: "false" });
      const name = add(make("td"), glyphs(add(lit, swatch(index)), member.name, true));
      if (member.name === data.pivot) name.append(make("span", "pivot", "pivot"));
      const share = member.carried / total;
      const figure = `${member.carried} (${percent(share)})`;
      const shared = add(make("div", "share"), bar(share, index), make("span", "", figure));
      add($("members"), add(make("tr"), name, add(make("td", "wide"), shared),
        make("td", "figure", String(member.filtered)),
        make("td", "figure", fixed(member.weight, 2)),
        make("td", "figure", `${fixed(member.decode_ms, 1)} ms`)));
    });
  }
  function spotlight(lit, member) {
    const on = lit.ariaPressed !== "true";
    for (const other of $("members").querySelectorAll("button")) other.ariaPressed = String(on && other === lit);
    main.classList.toggle("spotlit", on);
    tokens.forEach((node, i) => node.classList.toggle("lit", on && steps[i].carrier === member));
  }

  const tokens = [];
  function text() {
    let whole = true;
    const all = boxes.map(() => document.createDocumentFragment());
    steps.forEach((step, index) => {
      const node = tokenOf(step, index, !step.whole, !whole);
      whole = step.whole;
      node.setAttribute("role", "option");
      node.setAttribute("aria-selected", "false");
      node.setAttribute("aria-setsize", String(steps.length));
      node.setAttribute("aria-posinset", String(index + 1));
      node.setAttribute("aria-label", spell(step, members));
      node.tabIndex = -1;
      tokens.push(node);
      all[step.thought ? 0 : 1].append(node);
    });
    boxes.forEach((box, i) => box.append(all[i]));
    $("thought").hidden = !boxes[0].children.length;
    $("thought").querySelector("summary").textContent = `Thought, ${plural(thoughts, "token")}`;
  }

  function card(index) {
    const place = `step ${index + 1} of ${steps.length}`;
    $("card").replaceChildren(...describe(steps[index], members, place));
  }

  let kept = -1;
  let shown = -1;
  let cursor = null;
  function show(index) {
    if (index === shown) return;
    if (shown >= 0) tokens[shown].classList.remove("current");
    shown = index;
    if (index < 0) return;
    tokens[index].classList.add("current");
    card(index);
    cursor.setAttribute("transform", `translate(${index + 0.5} 0)`);
  }
  function keep(index) {
    if (kept >= 0) {
      tokens[kept].setAttribute("aria-selected", "false");
      tokens[kept].tabIndex = -1;
    }
    kept = index;
    tokens[kept].setAttribute("aria-selected", "true");
    tokens[kept].tabIndex = 0;
    show(kept);
  }
  function go(index) {
    if (index < 0 || index >= steps.length) return;
    keep(index);
    if (steps[index].thought) $("thought").open = true;
    tokens[index].focus({ preventScroll: true });
    tokens[index].scrollIntoView({ block: "nearest" });
  }
  function dispute(direction) {
    for (let i = kept + direction; i >= 0 && i < steps.length; i += direction) {
      if (steps[i].disputed) return go(i);
    }
    return undefined;
  }
  function listen() {
    for (const box of boxes) {
      walk(box, { show: (index) => show(index < 0 ? kept : index), keep: go, kept: () => kept });
      box.addEventListener("focusin", ({ target }) => target.dataset.index && keep(Number(target.dataset.index)));
    }
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "n") dispute(1);
      if (event.key === "p") dispute(-1);
    });
    $("next").addEventListener("click", () => dispute(1));
    $("previous").addEventListener("click", () => dispute(-1));
    $("next").disabled = $("previous").disabled = summary.disputed === 0;
    $("mono").addEventListener("click", () => {
      const on = main.classList.toggle("mono");
      $("mono").setAttribute("aria-pressed", String(on));
    });
    const place = (event) => {
      const box = $("course").getBoundingClientRect();
      const index = Math.floor((steps.length * (event.clientX - box.left)) / box.width);
      return Math.max(0, Math.min(steps.length - 1, index));
    };
    $("course").addEventListener("pointermove", (event) => moved(event) && show(place(event)));
    $("course").addEventListener("pointerleave", () => show(kept));
    $("course").addEventListener("click", (event) => go(place(event)));
  }

  /** Draw the fused probability along the text, who carried it, and what was filtered. */
  function course() {
    const svg = $("course");
    const draw = (tag, className, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      node.setAttribute("class", className);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      svg.append(node);
      return node;
    };
    const count = steps.length;
    svg.setAttribute("viewBox", `0 0 ${count} 100`);
    svg.setAttribute("aria-label", `Fused probability of ${count} tokens, on average ${fixed(summary.probability, 2)}`);
    const width = Math.ceil(count / BINS);
    const y = (probability) => fixed(2 + 64 * (1 - probability), 2);
    const upper = [];
    const lower = [];
    const line = [];
    for (let from = 0; from < count; from += width) {
      const bin = steps.slice(from, from + width).map((step) => step.probability);
      const to = from + bin.length;
      const mean = bin.reduce((sum, value) => sum + value, 0) / bin.length;
      upper.push(`${from} ${y(Math.max(...bin))} ${to} ${y(Math.max(...bin))}`);
      lower.unshift(`${to} ${width > 1 ? y(Math.min(...bin)) : 66} ${from} ${width > 1 ? y(Math.min(...bin)) : 66}`);
      line.push(`${from} ${y(mean)} ${to} ${y(mean)}`);
    }
    draw("path", "range", { d: `M${upper.join(" ")} ${lower.join(" ")}Z` });
    draw("path", "line", { d: `M${line.join(" ")}` });
    const boxes = (chosen, top, height) =>
      steps.map((step, i) => (chosen(step) ? `M${i} ${top}h1v${height}h-1z` : "")).join("");
    members.forEach((_, member) => {
      draw("path", `carrier ${colour(member)}`, { d: boxes((step) => step.carrier === member, 74, 12) });
    });
    draw("path", "filtered", { d: boxes(isFiltered, 91, 7) });
    cursor = draw("path", "cursor", { d: "M0 0V100" });
    const per = width > 1 ? `, mean and range of ${width} tokens` : "";
    $("course-key").textContent =
      `From above: fused probability of the chosen token (0 to 1${per}); the member that carried it; filtered votes.`;
  }

  header();
  legend();
  text();
  if (steps.length) {
    course();
    listen();
    // Where there is an answer, the thought stays folded.
    const begin = boxes[1].children.length ? boxes[0].children.length : 0;
    keep(Math.max(begin, steps.findIndex((step, i) => step.disputed && i >= begin)));
  } else {
    $("text").textContent = "No token was written.";
  }
})();

"use strict";
// What the pages with tokens share: marks, the colours of members, what a card says of a step.
const eva = (() => {
  const COLOURS = 8;
  const SHOWN = 5;
  // How many bits votes differ by, at least, where a page says that they are apart.
  const APART = 0.3;

  // Text of users and models reaches the document through here and `glyphs` only, as text.
  function make(tag, className, text, properties) {
    const node = Object.assign(document.createElement(tag), properties);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function add(parent, ...children) {
    parent.append(...children);
    return parent;
  }
  function mark(label, className = "mark") {
    const node = make("span", className);
    node.dataset.mark = label;
    return node;
  }
  const colour = (member) => (member < 0 ? "" : `m${member % COLOURS}`);
  const letter = (member) => String.fromCharCode(65 + (member % 26));
  const isFiltered = (step) => step.ballots.some((ballot) => ballot.verdict === "filtered");
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  function fixed(value, digits) {
    return value.toFixed(digits);
  }

  // Bytes that are no UTF-8, controls, and characters that move or hide others.
  const SPECIAL = /[\ud800-\udfff]|[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]| {2,}/gu;
  // In a list of candidates every space counts.
  const SPECIAL_OR_SPACE = new RegExp(`${SPECIAL.source}| `, "gu");

  // In a text to be read, blanks, tabs and line ends are what they are.
  const UNSEEN = /[\ud800-\udfff]|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

  /** Append text with a sign for every character that has none of its own; `broken` into lines. */
  function glyphs(node, text, broken) {
    if (/^ +$/.test(text)) return spaces(node, text.length);
    return signs(node, text, broken ? SPECIAL : SPECIAL_OR_SPACE, broken);
  }
  /** Append text to be read: signs stand only for what could not be seen, or moves other text. */
  const words = (node, text) => signs(node, text, UNSEEN, true);
  function signs(node, text, which, broken) {
    let from = 0;
    for (const found of text.matchAll(which)) {
      const at = found.index;
      node.append(text.slice(from, at));
      from = at + found[0].length;
      special(node, found[0], broken);
    }
    node.append(text.slice(from));
    return node;
  }
  function special(node, text, broken) {
    const code = text.codePointAt(0);
    if (text[0] === " ") spaces(node, text.length);
    else if (text === "\n") add(node, mark("↵"), broken ? "\n" : "");
    else if (text === "\t") add(node, mark("⇥"), broken ? "\t" : "");
    else if (code < 0x20) node.append(mark(String.fromCharCode(0x2400 + code)));
    // How the file's reader hands on a byte that is no UTF-8.
    else if (code >= 0xdc80 && code <= 0xdcff) node.append(mark((code - 0xdc00).toString(16).toUpperCase(), "mark chip"));
    else node.append(mark(`U+${code.toString(16).toUpperCase().padStart(4, "0")}`, "mark chip"));
  }
  function spaces(node, count) {
    for (let i = 0; i < count; i += 1) node.append(make("span", "dot", " "));
    return node;
  }
  function token(node, step, broken) {
    if (step.hex === "") return add(node, mark("END", "mark chip"));
    if (step.shown === "") return add(node, mark("◦"));
    return glyphs(node, step.shown, broken);
  }
  /** Return the node of a step; the tokens of one character are joined: they have `begun` it, or end it. */
  function tokenOf(step, index, begun, ended) {
    const node = token(make("span", `token ${colour(step.carrier)}`), step, true);
    for (const [name, on] of Object.entries({ filtered: isFiltered(step), apart: step.apart >= APART, begun, ended })) node.classList.toggle(name, on);
    node.dataset.index = String(index);
    return node;
  }
  /** Return what is said aloud of a step. */
  function spell(step, members) {
    const filtered = step.ballots.filter((ballot) => ballot.verdict === "filtered").length;
    const carrier = step.carrier < 0 ? "" : `, carried by ${members[step.carrier]}`;
    return `${spoken(step)}${carrier}${filtered ? `, ${plural(filtered, "vote")} filtered` : ""}`;
  }
  const spoken = (step) =>
    step.hex === "" ? `end of the ${step.thought ? "thought" : "answer"}`
      : step.shown === "" ? "part of a character"
      : step.shown.replace(/\n/g, " line break ").trim() || "space";

  function button(className, label, act, properties) {
    const node = make("button", className, label, { type: "button", ...properties });
    node.addEventListener("click", act);
    return node;
  }
  function fill(share, member) {
    const node = make("div", `fill ${colour(member)}`);
    node.style.width = `${Math.min(100, 100 * share)}%`;
    return node;
  }
  function bar(share, member) {
    const track = add(make("div", "track"), fill(share, member));
    track.setAttribute("aria-hidden", "true");
    return track;
  }
  const swatch = (member) => {
    const node = mark(letter(member), `swatch ${colour(member)}`);
    node.setAttribute("aria-hidden", "true");
    return node;
  };

  function candidates(parent, top, member) {
    top.forEach(([piece, probability, chosen], rank) => {
      if (rank >= SHOWN && !chosen) return;
      const row = make("div", chosen ? "candidate chosen" : "candidate");
      const what = make("span", "what");
      if (piece === "") what.append(mark("END", "mark chip"));
      else glyphs(what, piece, false);
      what.title = piece;
      add(parent, add(row, what, bar(probability, member), make("span", "much", percent(probability))));
    });
  }
  function ballot(vote, members) {
    const part = make("section", `ballot ${vote.verdict}`);
    const weighed = vote.verdict === "stayed" ? `weight ${fixed(vote.weight, 2)}` : vote.verdict;
    const taken = vote.ms === undefined ? "" : ` · ${fixed(vote.ms, 1)} ms`;
    const verdict = `${vote.verdict === "absent" ? "not asked" : weighed}${taken}`;
    const name = glyphs(add(make("span"), swatch(vote.member)), members[vote.member], true);
    add(part, add(make("h2"), name, make("span", "verdict", verdict)));
    if (vote.reason && vote.verdict !== "stayed") part.append(glyphs(make("p", "reason"), vote.reason, true));
    candidates(part, vote.top, vote.member);
    if (vote.top.length && !vote.top.some((candidate) => candidate[2])) {
      part.append(make("p", "aside", `gave the chosen token ${percent(vote.chosen)}`));
    }
    return part;
  }
  /** Return what there is to say of a step, as nodes; `place` is its number, in words. */
  function describe(step, members, place) {
    const head = make("div", "chosen-token");
    const glyph = token(make("span", `glyph ${colour(step.carrier)}`), step, false);
    add(head, glyph, make("span", "aside", place));
    const by = step.carrier < 0 ? "" : `carried by ${members[step.carrier]}`;
    const bytes = glyphs(make("p", "aside"), by, true);
    if (step.hex) add(bytes, by ? " · bytes " : "bytes ", make("span", "bytes", step.hex));
    const fused = make("section", "ballot");
    const title = make("h2", "", "All together");
    add(title, make("span", "verdict", `chosen with ${percent(step.probability)}`));
    fused.append(title);
    candidates(fused, step.top, -1);
    if (typeof step.apart === "number") fused.append(make("p", "aside", `votes ${fixed(step.apart, 2)} bits apart`));
    const parts = step.ballots.map((vote) => ballot(vote, members));
    if (!parts.length) parts.push(make("p", "aside", "Nothing more was recorded of this step."));
    return [head, bytes, fused, ...parts];
  }
  /** Return the number of the token above or below: the nearest one of the next line there, or -1. */
  function vertical(tokens, from, direction) {
    const here = tokens[from].getClientRects()[0];
    let best = -1;
    let line = null;
    let distance = Infinity;
    for (let i = from + direction; i >= 0 && i < tokens.length; i += direction) {
      const rect = tokens[i].getClientRects()[0];
      if (Math.abs(rect.top - here.top) < here.height / 2) continue;
      if (line === null) line = rect.top;
      if (Math.abs(rect.top - line) > here.height / 2) break;
      const off = Math.abs(rect.left - here.left);
      if (off < distance) [best, distance] = [i, off];
    }
    return best;
  }

  const KEYS = {
    ArrowRight: (_, here) => here + 1,
    ArrowLeft: (_, here) => here - 1,
    ArrowDown: (all, here) => (here < 0 ? 0 : vertical(all, here, 1)),
    ArrowUp: (all, here) => (here < 0 ? 0 : vertical(all, here, -1)),
    Home: () => 0,
    End: (all) => all.length - 1,
  };
  /**
   * Let a pointer and keys go from token to token in a box. A pointer that `hovers` shows one for the moment, and -1
   * where there is none; a click or a key keeps one; `kept` returns which.
   */
  function walk(box, { show, keep, kept, hovers = () => true }) {
    const at = ({ target }) => Number(target.closest?.(".token")?.dataset.index ?? -1);
    box.addEventListener("pointerover", (event) => hovers(event) && moved(event) && show(at(event)));
    box.addEventListener("pointerleave", () => show(-1));
    box.addEventListener("click", (event) => at(event) >= 0 && keep(at(event)));
    box.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const all = [...box.querySelectorAll(".token")];
      const here = all.findIndex((node) => node.dataset.index === String(kept()));
      const next = all[KEYS[event.key](all, here)];
      if (next) keep(Number(next.dataset.index), true);
    });
  }

  // Where the page moves under a pointer that rests, nobody points at what comes to lie there.
  let rests = "";
  const moved = (event) => rests !== (rests = `${event.screenX} ${event.screenY}`);
  document.addEventListener("pointermove", moved);

  return { make, add, colour, percent, plural, fixed, glyphs, words, tokenOf, isFiltered, APART, spell, button, fill, bar, swatch, describe, walk, moved };
})();

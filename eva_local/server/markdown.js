// Markdown as nodes. Text of a model becomes text nodes alone, never markup: there is nothing to clean.
const markdown = (() => {
  const { make, add, words, button } = eva;
  const DEEPEST = 24;
  const LONGEST = 200_000;
  const SCHEMES = ["http:", "https:", "mailto:"];
  const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
  const ENTITY = /&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,7})|#[xX]([\da-fA-F]{1,6}));/g;

  const plain = (text) => text.replace(ENTITY, (whole, name, decimal, hex) => {
    if (name) return ENTITIES[name];
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
  const address = (href) => (URL.canParse(href) && SCHEMES.includes(new URL(href).protocol) ? new URL(href).href : "");
  function link(token, depth) {
    const href = address(token.href);
    if (!href) return words(make("span"), token.raw);
    const node = make("a", "", undefined, { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" });
    // An image is not loaded: who wants to see it follows the link.
    return token.type === "image" ? words(node, token.text || href) : inside(node, token.tokens, depth);
  }
  function list(token, depth) {
    const node = make(token.ordered ? "ol" : "ul");
    if (token.ordered && token.start !== 1) node.start = token.start;
    for (const item of token.items) node.append(inside(make("li", item.task ? "task" : ""), item.tokens, depth));
    return node;
  }
  function table(token, depth) {
    const row = (cells, tag) => add(make("tr"), ...cells.map((cell) => {
      const node = inside(make(tag), cell.tokens, depth);
      if (cell.align) node.style.textAlign = cell.align;
      return node;
    }));
    const rows = [row(token.header, "th"), ...token.rows.map((cells) => row(cells, "td"))];
    const box = make("div", "scroll", undefined, { tabIndex: 0, role: "region", ariaLabel: "Table" });
    return add(box, add(make("table"), ...rows));
  }
  /** Append highlighted code: the tree of highlight.js, not the HTML that it would write. */
  function tree(node, parts) {
    for (const part of parts) {
      if (typeof part === "string") words(node, part);
      else node.append(tree(make("span", part.scope ? `hl-${part.scope.replace(/\W.*/, "")}` : ""), part.children));
    }
    return node;
  }
  function code(token) {
    const language = /^[\w+#.-]+/.exec(token.lang ?? "")?.[0].toLowerCase() ?? "";
    const copy = button("copy-code", "Copy", () => ours.copy(copy, token.text), { ariaLabel: "Copy code" });
    let parts = [token.text];
    if (hljs.getLanguage(language) && token.text.length < LONGEST) {
      const found = hljs.highlight(token.text, { language, ignoreIllegals: true })._emitter?.rootNode;
      parts = found?.children ?? parts;
    }
    const pre = add(make("pre", "", undefined, { tabIndex: 0 }), tree(make("code"), parts));
    return add(make("div", "code"), add(make("div", "code-head"), words(make("span"), language || "text"), copy), pre);
  }
  const INSIDE = { paragraph: "p", blockquote: "blockquote", strong: "strong", em: "em", del: "del" };
  function nodeOf(token, depth) {
    const { type } = token;
    if (depth > DEEPEST) return words(make("span"), token.raw);
    if (type in INSIDE) return inside(make(INSIDE[type]), token.tokens, depth);
    // The page has headings of its own above those of answers.
    if (type === "heading") return inside(make(`h${Math.min(6, token.depth + 2)}`), token.tokens, depth);
    if (type === "list") return list(token, depth);
    if (type === "table") return table(token, depth);
    if (type === "code") return code(token);
    if (type === "link" || type === "image") return link(token, depth);
    if (type === "codespan") return words(make("code"), token.text);
    if (type === "hr" || type === "br") return make(type);
    if (type === "checkbox") return make("span", "box", token.checked ? "☑ " : "☐ ");
    if (type === "space" || type === "def") return "";
    if (type === "text" && token.tokens) return inside(document.createDocumentFragment(), token.tokens, depth);
    if (type === "text" || type === "escape") return words(document.createDocumentFragment(), plain(token.text));
    // HTML, and whatever else there may be, is shown as it was written.
    return words(make(token.block ? "p" : "span"), token.block ? token.raw.trimEnd() : token.raw);
  }
  function inside(node, tokens, depth) {
    for (const token of tokens) node.append(nodeOf(token, depth + 1));
    return node;
  }
  function blocks(text) {
    try {
      return marked.lexer(text);
    } catch {
      return [{ type: "html", block: true, raw: text }];
    }
  }

  // What stands in each box already.
  const drawn = new WeakMap();
  /** Show a text in a box: of what stands there, only blocks that changed are drawn anew. */
  function draw(box, text) {
    const before = drawn.get(box) ?? { raws: [], text: "", links: 0 };
    if (before.text === text) return;
    const tokens = blocks(text).filter(({ type }) => type !== "space" && type !== "def");
    const links = text.match(/^ {0,3}\[[^\]\n]+\]:/gm)?.length ?? 0;
    let same = 0;
    // A link's address may stand behind it: then all is drawn again.
    while (links === before.links && same < tokens.length && tokens[same].raw === before.raws[same]) same += 1;
    while (box.childNodes.length > same) box.lastChild.remove();
    for (const token of tokens.slice(same)) {
      const node = nodeOf(token, 0);
      box.append(node instanceof DocumentFragment || node === "" ? add(make("p"), node) : node);
    }
    drawn.set(box, { raws: tokens.map(({ raw }) => raw), text, links });
  }
  // The page says how a text is copied.
  const ours = { draw, copy: null };
  return ours;
})();

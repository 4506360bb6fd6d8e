// Words on which members disagree: where they stand in an answer, and in what is drawn of it.
const disputes = (() => {
  const WORD = /[\p{L}\p{N}_]+/gu;
  const MEANING = `Underlined: votes at least ${eva.APART} bits apart, by their Jensen-Shannon divergence, all members alike. 0 is agreement.`;

  /** Return how much of the beginning of an answer the steps do not tell: all of it, or nothing is usual. */
  const unknown = (content, steps) => content.length - steps.reduce((sum, { shown, thought }) => sum + (thought ? 0 : shown.length), 0);
  /** Return the disputed words of an answer, the most disputed first, each with the step that is. */
  function words(content, steps) {
    const all = [...content.matchAll(WORD)];
    const found = new Map();
    let [at, order] = [unknown(content, steps), 0];
    steps.forEach((step, index) => {
      if (step.thought) return;
      while (order < all.length && all[order].index + all[order][0].length <= at) order += 1;
      at += step.shown.length;
      const bits = step.apart ?? 0;
      if (order === all.length || all[order].index >= at || bits < eva.APART || found.get(order)?.bits >= bits) return;
      found.set(order, { text: all[order][0], order, index, bits });
    });
    return [...found.values()].sort((a, b) => b.bits - a.bits);
  }
  /** Return ranges in what is drawn, by steps, of words that stand there as often as in the text. */
  function ranges(box, content, found) {
    const drawn = [];
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.parentElement.closest(".code-head")) continue;
      for (const { 0: text, index } of node.data.matchAll(WORD)) drawn.push({ text, node, index });
    }
    const written = [...content.matchAll(WORD)].map(([text], order) => ({ text, order }));
    const [there, here] = [written, drawn].map((each) => Map.groupBy(each, ({ text }) => text));
    const placed = found.filter(({ text }) => there.get(text).length === here.get(text)?.length);
    return new Map(placed.map(({ text, order, index }) => {
      const hit = here.get(text)[there.get(text).findIndex((each) => each.order === order)];
      const range = new Range();
      range.setStart(hit.node, hit.index);
      range.setEnd(hit.node, hit.index + text.length);
      return [index, range];
    }));
  }
  return { words, ranges, unknown, MEANING };
})();

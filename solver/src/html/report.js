"use strict";
(() => {
  const nav = document.getElementById("search"), input = nav.querySelector("input"), output = nav.querySelector("output");
  const problems = [...document.querySelectorAll(".problem")];
  const text = new Map();
  for (const e of document.querySelectorAll(".attempt, .statement, .problem > h2")) text.set(e, e.textContent.toLowerCase());
  nav.hidden = false;
  const mark = (query) => {
    if (!window.Highlight || !CSS.highlights) return;
    CSS.highlights.delete("found");
    if (!query) return;
    const ranges = [];
    const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode() && ranges.length < 5000) {
      const node = walker.currentNode, value = node.data.toLowerCase();
      for (let at = value.indexOf(query); at >= 0 && value.length === node.data.length; at = value.indexOf(query, at + query.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + query.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };
  const search = () => {
    const query = input.value.trim().toLowerCase();
    let n = 0;
    for (const p of problems) {
      const inHead = [...p.querySelectorAll(":scope > h2, .statement")].some((e) => text.get(e).includes(query));
      let any = inHead;
      for (const a of p.querySelectorAll(".attempt")) {
        const found = text.get(a).includes(query);
        a.hidden = query !== "" && !found && !inHead;
        if (query !== "") a.open = found;
        any ||= found;
        if (found) n++;
      }
      p.hidden = query !== "" && !any;
    }
    output.value = query === "" ? "" : `${n} attempts`;
    mark(query);
  };
  let timer;
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 120); });
  const all = (open) => document.querySelectorAll(".attempt").forEach((a) => { a.open = open; });
  document.getElementById("open").addEventListener("click", () => all(true));
  document.getElementById("close").addEventListener("click", () => all(false));
  const follow = () => {
    const e = document.getElementById(location.hash.slice(1));
    if (e && e.matches(".attempt")) e.open = true;
  };
  addEventListener("hashchange", follow);
  follow();
})();

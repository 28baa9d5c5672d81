"use strict";
// Asks for the parts of the page and puts those in place that changed. Their text was escaped
// where the page's was. A part in which the reader is (focus, selection) waits.
(() => {
  const fresh = document.getElementById("fresh");
  const gone = document.getElementById("gone");
  const shown = new Map();
  let pause = 2000;

  const isBusy = (part) => {
    const selection = document.getSelection();
    return part.contains(document.activeElement) ||
      (selection && !selection.isCollapsed && part.contains(selection.anchorNode));
  };

  const put = (parts) => {
    for (const [name, html] of Object.entries(parts)) {
      const part = document.getElementById("part-" + name);
      if (!part || shown.get(name) === html || isBusy(part)) continue;
      const first = !shown.has(name) && part.innerHTML.trim() === html.trim();
      if (!first) {
        const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.id));
        part.innerHTML = html;
        for (const one of part.querySelectorAll("details")) one.open = one.open || open.has(one.id);
      }
      shown.set(name, html);
    }
  };

  const look = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch("state.json" + location.search, { cache: "no-store" });
        if (!answer.ok) throw new Error(String(answer.status));
        put((await answer.json()).parts);
        fresh.textContent = "Kept up to date; last at " + new Date().toISOString().slice(11, 19) + ".";
        gone.hidden = true;
        pause = 2000;
      } catch (error) {
        gone.hidden = false;
        pause = Math.min(30000, 1.5 * pause);
      }
    }
    setTimeout(look, pause);
  };
  // A role=status that changes every other second would be read out every other second.
  fresh.setAttribute("aria-live", "off");
  setTimeout(look, 500);
})();

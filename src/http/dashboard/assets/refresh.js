// Keeps a page fresh that asks for it (data-refresh, in seconds), unless somebody is at work on it.
"use strict";
(() => {
  const main = () => document.querySelector("main[data-refresh], main:has([data-refresh])");
  const busy = () =>
    document.hidden || document.querySelector("details[open], form:focus-within, table:focus-within") !== null;
  const every = Number(document.querySelector("[data-refresh]")?.dataset.refresh ?? 0);
  if (!every) return;
  setInterval(async () => {
    if (busy()) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (answer.redirected || !answer.ok) return location.reload();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (fresh && !busy()) main().replaceChildren(...fresh.childNodes);
      document.body.classList.remove("stale");
    } catch {
      document.body.classList.add("stale");
    }
  }, every * 1000);
})();

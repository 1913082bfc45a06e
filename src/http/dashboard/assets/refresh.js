// Reloads a page that requests it (data-refresh, in seconds), unless its user is busy on it.
"use strict";
(() => {
  const main = (page) => page.querySelector("main");
  const busy = () =>
    document.hidden || !getSelection().isCollapsed || document.querySelector("details[open], main :focus") !== null;

  async function refresh() {
    try {
      if (busy()) return;
      // A running service answers within ten seconds.
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(12_000) });
      if (answer.redirected) return location.reload();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (busy()) return;
      main(document).replaceChildren(...main(fresh).childNodes);
      document.title = fresh.title;
      document.body.classList.remove("stale");
    } catch {
      document.body.classList.add("stale");
    } finally {
      plan();
    }
  }

  function plan() {
    const seconds = Number(document.querySelector("[data-refresh]")?.dataset.refresh ?? 0);
    if (seconds) setTimeout(refresh, seconds * 1000);
  }

  plan();
})();

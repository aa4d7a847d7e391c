// Keeps the page up to date: it takes in what the server sends, and says times
// as people do. Without it the page can be read all the same.
"use strict";
(() => {
  const circuits = document.getElementById("circuits");
  const summary = document.getElementById("summary");
  const note = document.getElementById("note");
  const live = document.getElementById("live");

  // ago says how far away a time is.
  function ago(then, now) {
    const s = Math.round((now - then) / 1000), n = Math.abs(s);
    if (n < 2) return "now";
    const text = n < 120 ? n + " s" : n < 7200 ? Math.floor(n / 60) + " min" : n < 172800 ? Math.floor(n / 3600) + " h" : Math.floor(n / 86400) + " days";
    return s > 0 ? text + " ago" : "in " + text;
  }
  function tellTimes() {
    const now = Date.now();
    for (const time of document.querySelectorAll("time")) {
      const then = new Date(time.dateTime);
      if (!time.title) time.title = time.textContent;
      const text = then.toLocaleString([], { dateStyle: now - then > 64800000 ? "short" : undefined, timeStyle: "medium" }) + " (" + ago(then, now) + ")";
      if (time.textContent !== text) time.textContent = text;
    }
  }
  tellTimes();
  setInterval(tellTimes, 1000);
  if (!circuits) return;

  // fill replaces what an element shows, and keeps the focus on its link.
  function fill(element, html) {
    const focused = element.contains(document.activeElement);
    element.innerHTML = html;
    if (focused) element.querySelector("a")?.focus({ preventScroll: true });
  }
  function put(order) {
    const wanted = new Set(order);
    for (const row of [...circuits.children]) if (!wanted.has(row.id)) row.remove();
    let at = circuits.firstElementChild;
    for (const id of order) {
      const row = document.getElementById(id) ?? Object.assign(document.createElement("li"), { id });
      if (row === at) at = at.nextElementSibling;
      else {
        const focused = row.contains(document.activeElement);
        circuits.insertBefore(row, at);
        if (focused) row.querySelector("a")?.focus({ preventScroll: true });
      }
    }
  }
  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  const shown = new Map(), notes = { html: null };
  function take(frame) {
    if (frame.order) put(frame.order);
    for (const { id, html } of frame.rows ?? []) {
      const row = document.getElementById(id);
      if (row && shown.get(id) !== html) fill(row, html);
      shown.set(id, html);
    }
    for (const id of [...shown.keys()]) if (!document.getElementById(id)) shown.delete(id);
    say(summary, frame.summary);
    if (notes.html !== frame.note) note.innerHTML = notes.html = frame.note;
    tellTimes();
  }

  const source = new EventSource("events" + location.search);
  source.onopen = () => { live.className = ""; say(live, "Live"); };
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.onerror = () => {
    live.className = "lost";
    say(live, source.readyState === EventSource.CLOSED ? "Not live: reload the page" : "Connection lost: trying again");
  };
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();

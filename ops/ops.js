// This file updates the page from the events of the server, and shows relative times.
// The page also works without it.
"use strict";
(() => {
  const circuits = document.getElementById("circuits");
  const summary = document.getElementById("summary");
  const note = document.getElementById("note");
  const live = document.getElementById("live");

  // ago returns the time between then and now, in words.
  function ago(then, now) {
    const s = Math.round((now - then) / 1000), n = Math.abs(s);
    if (n < 2) return "now";
    const text = n < 120 ? n + " s" : n < 7200 ? Math.floor(n / 60) + " min" : n < 172800 ? Math.floor(n / 3600) + " h" : Math.floor(n / 86400) + " days";
    return (s > 0 ? text + " ago" : "in " + text).replaceAll(" ", "\u00a0");
  }
  function showTimes() {
    const now = Date.now();
    for (const time of document.querySelectorAll("time")) {
      const then = new Date(time.dateTime);
      if (!time.title) time.title = time.textContent;
      const text = then.toLocaleString([], { dateStyle: now - then > 64800000 ? "short" : undefined, timeStyle: "medium" }) + " (" + ago(then, now) + ")";
      if (time.textContent !== text) time.textContent = text;
    }
  }
  showTimes();
  setInterval(showTimes, 1000);
  if (!circuits) return;

  // fill replaces the content of an element, and keeps the focus in it.
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
  function show(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }
  const shown = new Map(), notes = { html: null };
  function apply(frame) {
    if (frame.order) put(frame.order);
    for (const { id, html } of frame.rows ?? []) {
      const row = document.getElementById(id);
      if (row && shown.get(id) !== html) fill(row, html);
      shown.set(id, html);
    }
    for (const id of [...shown.keys()]) if (!document.getElementById(id)) shown.delete(id);
    show(summary, frame.summary);
    if (notes.html !== frame.note) note.innerHTML = notes.html = frame.note;
    showTimes();
  }

  // The browser reconnects by itself, unless the server or a proxy returns an error. A
  // reconnection within 5 s shows no warning.
  let source, lost;
  function connect() {
    source = new EventSource("events" + location.search);
    source.onopen = () => { clearTimeout(lost); lost = undefined; live.className = ""; show(live, "Live"); };
    source.onmessage = (event) => apply(JSON.parse(event.data));
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) {
        setTimeout(connect, 30000);
        warn("Not updating. Next attempt in 30 s. Reload to refresh.");
      } else lost ??= setTimeout(() => warn("Connection lost. Reconnecting…"), 5000);
    };
  }
  function warn(text) {
    clearTimeout(lost);
    lost = undefined;
    live.className = "lost";
    show(live, text);
  }
  connect();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();

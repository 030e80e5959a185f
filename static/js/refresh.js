/**
 * Refreshes the page's `data-refresh` regions from a fresh copy of the page, changing only the nodes
 * that differ: what the user is typing, has ticked, opened or focused stays.
 *
 * The copy comes from the server, from this page's own URL. So a list is rendered in one place only,
 * and the page shows what a reload would show.
 */

import { showTimes } from "./times.js";
import { reloadPage, showUnsent, unsentTexts } from "./unsent-text.js";

/** Fetch a copy, and run `around` with the function that applies it. Rejects without an answer. */
async function refresh(around) {
  const response = await fetch(location.href, {
    headers: { Accept: "text/html" },
    cache: "no-store",
    signal: AbortSignal.timeout(10_000),
  });
  // The user's role has changed; the server's page says so.
  if (response.status === 403) reloadPage("You do not have access to this page any more.");
  if (!response.ok || response.redirected) return; // signed out: the stream reports it
  const copy = new DOMParser().parseFromString(await response.text(), "text/html");
  showTimes(copy);
  around(() => apply(copy));
}

function apply(copy) {
  const focused = document.activeElement;
  const unsent = unsentTexts(document.getElementById("main"));
  for (const region of document.querySelectorAll("[data-refresh]")) {
    const fresh = copy.querySelector(`[data-refresh="${region.dataset.refresh}"]`);
    if (fresh) morph(region, fresh);
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus();
  const lost = unsent.filter(({ field }) => !field.isConnected && !moveText(field));
  showUnsent(lost, "The list has changed while you were writing.");
}

/** Copy the text of a removed field to the new field with its id. False: there is none. */
function moveText(field) {
  const next = field.id && document.getElementById(field.id);
  if (!next) return false;
  next.value = field.value;
  for (let part = next.closest("details"); part; part = part.parentElement.closest("details")) {
    part.open = true;
  }
  return true;
}

/**
 * Make a function that requests a refresh; calls in quick succession make one. `around` is called
 * with the function that changes the page, and has to call it. `pause`: milliseconds between two
 * refreshes, which bounds the load on the server when many orders change.
 */
export function refresher({ around = (change) => change(), pause = 1000 } = {}) {
  let timer = null;
  let running = false;
  let again = false;
  async function run() {
    timer = null;
    running = true;
    try {
      await refresh(around);
    } catch {
      // No network, or no server: the stream's onResume requests a refresh again.
    }
    setTimeout(() => {
      running = false;
      if (again) soon();
      again = false;
    }, pause);
  }
  function soon() {
    if (running) again = true;
    else timer ??= setTimeout(run, 50);
  }
  return soon;
}

function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.dataset.script !== undefined) return; // its content is a script's
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const kept = new Set();
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const match = counterpart(old, child, place, kept);
    if (match) {
      kept.add(match);
      if (match !== place) old.insertBefore(match, place);
      else place = place.nextSibling;
      morph(match, child);
    } else {
      const added = document.importNode(child, true);
      kept.add(added);
      old.insertBefore(added, place);
    }
  }
  for (const child of [...old.childNodes]) if (!kept.has(child)) child.remove();
}

/** The old node that `child` replaces: the one with its key, or the next one of its kind. */
function counterpart(old, child, place, kept) {
  const key = child.dataset?.key;
  if (key !== undefined) return old.querySelector(`:scope > [data-key="${CSS.escape(key)}"]`);
  for (let node = place; node; node = node.nextSibling) {
    if (!kept.has(node) && node.nodeName === child.nodeName && node.dataset?.key === undefined) {
      return node;
    }
  }
  return null;
}

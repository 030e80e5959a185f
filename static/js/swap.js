/**
 * Make the marked regions of this page look like those of a fresh copy of it, touching only what
 * differs: what somebody is typing, has ticked, opened or focused stays.
 *
 * The copy comes from the server, at this page's own address, so a list needs no second rendering
 * in the browser, and what is shown is what a reload would show.
 */

import { showTimes } from "./times.js";

/** Fetch a copy and take it over. Rejects when there is none to be had. */
async function refresh() {
  const response = await fetch(location.href, {
    headers: { Accept: "text/html" },
    cache: "no-store",
    signal: AbortSignal.timeout(10_000),
  });
  if (response.status === 403) location.reload(); // a right is gone: the server's page says so
  if (!response.ok || response.redirected) return; // signed out: the stream will say so
  const copy = new DOMParser().parseFromString(await response.text(), "text/html");
  showTimes(copy);
  const focused = document.activeElement;
  for (const region of document.querySelectorAll("[data-swap]")) {
    const fresh = copy.querySelector(`[data-swap="${region.dataset.swap}"]`);
    if (fresh) morph(region, fresh);
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus();
}

/**
 * Makes a function that asks for a refresh soon; many calls make one. `after` runs behind each.
 * `pause`: milliseconds between two, so that a busy hour does not become a busy server.
 */
export function refresher(after = () => {}, pause = 1000) {
  let timer = null;
  let running = false;
  let again = false;
  async function run() {
    timer = null;
    running = true;
    try {
      await refresh();
      after();
    } catch {
      // No network, or no server: when the stream is back it asks again.
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

/** The node that `child` renews: the one with its key, or the next of its kind. */
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

/**
 * Make the marked regions of this page look like those of a fresh copy of it, touching only what
 * differs: what somebody is typing, has ticked, opened or focused stays.
 *
 * The copy comes from the server, at this page's own address, so a list needs no second rendering
 * in the browser, and what is shown is what a reload would show.
 */

import { keep, renewPage, typedIn } from "./kept.js";
import { showTimes } from "./times.js";

/** Fetch a copy and take it over within `around`. Rejects when there is none to be had. */
async function refresh(around) {
  const response = await fetch(location.href, {
    headers: { Accept: "text/html" },
    cache: "no-store",
    signal: AbortSignal.timeout(10_000),
  });
  // A right is gone: the server's page says so.
  if (response.status === 403) renewPage("You do not have access to this page any more.");
  if (!response.ok || response.redirected) return; // signed out: the stream will say so
  const copy = new DOMParser().parseFromString(await response.text(), "text/html");
  showTimes(copy);
  around(() => takeOver(copy));
}

function takeOver(copy) {
  const focused = document.activeElement;
  const typed = typedIn(document.getElementById("main"));
  for (const region of document.querySelectorAll("[data-swap]")) {
    const fresh = copy.querySelector(`[data-swap="${region.dataset.swap}"]`);
    if (fresh) morph(region, fresh);
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus();
  const lost = typed.filter(({ field }) => !field.isConnected && !moveTo(field));
  keep(lost, "The list has changed while you were writing.");
}

/** Go on in the field that has come for a removed one, in another place of the page. */
function moveTo(field) {
  const next = field.id && document.getElementById(field.id);
  if (!next) return false;
  next.value = field.value;
  for (let part = next.closest("details"); part; part = part.parentElement.closest("details")) {
    part.open = true;
  }
  return true;
}

/**
 * Makes a function that asks for a refresh soon; many calls make one. `around` is handed what changes
 * the page, and runs it. `pause`: milliseconds between two, so that a busy hour does not become a
 * busy server.
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
  if (old.dataset.script !== undefined) return; // filled by a script, and by nobody else
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

/**
 * The page's one connection: the stream of events, the badge that shows its state, and what all pages
 * need to show an event.
 */

import { io } from "../vendor/socket.io/socket.io.esm.min.js";
import { OrderStream } from "./order-stream.js";
import { renew, showSignedOut } from "./session.js";

const WORDS = {
  connecting: "Connecting …",
  live: "Live",
  reconnecting: "Reconnecting …",
  polling: "Polling",
  offline: "Offline",
};
const HINTS = {
  live: "Changes appear by themselves.",
  polling: "No live connection can be made from here. This page asks for changes every few seconds.",
  offline: "No network. What changes meanwhile appears as soon as you are back.",
};

/** Milliseconds. A connection that is back sooner is not shown as lost. */
const BLINK = 700;

/** Milliseconds for which a toast is shown. */
const TOAST = 7000;

let socket;

export const stream = new OrderStream({
  io: (...args) => (socket = io(...args)),
  onRenew: renew,
});

// --- the badge -----------------------------------------------------------------------------------

const badge = document.getElementById("link-state");
let waiting;

function show(state) {
  badge.dataset.state = state;
  badge.textContent = WORDS[state] ?? state;
  badge.title = HINTS[state] ?? "";
  badge.hidden = state === "signed_out"; // the page itself shows it, with the reason
  if (state === "live") showTransport(socket.io.engine);
}

/** Show when WebSockets are blocked: events then come by long polling, a little later. */
function showTransport(engine) {
  if (engine.transport.name === "websocket") return;
  badge.textContent = "Live (polling)";
  badge.title = "WebSockets are blocked here; changes come by polling, a little later.";
  engine.once("upgrade", () => badge.dataset.state === "live" && show("live"));
}

stream.addEventListener("state", ({ detail: { state, problem } }) => {
  if (state === "closed") return; // by `stream.close()` below: the badge keeps the reason
  clearTimeout(waiting);
  if (state === "reconnecting") waiting = setTimeout(show, BLINK, state);
  else show(state);
  if (state === "signed_out") {
    stream.close();
    showSignedOut(problem?.detail);
  }
});
waiting = setTimeout(show, BLINK, stream.state);

// A page from the back/forward cache has lost its connection: load it again.
addEventListener("pageshow", (event) => event.persisted && location.reload());

// --- announcements -------------------------------------------------------------------------------

const toasts = document.getElementById("toasts");
const title = { own: document.title, unseen: 0 };

/** Show `text` as a toast, which screen readers read; in a hidden tab also in the title. */
export function announce(text, status) {
  const line = document.createElement("p");
  line.className = "toast-line";
  if (status) line.append(glyph(status));
  const words = document.createElement("span");
  words.dir = "auto";
  words.textContent = text;
  line.append(words);
  toasts.append(line);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(() => line.remove(), TOAST);
  if (document.hidden) {
    title.unseen += 1;
    document.title = `(${title.unseen}) ${text}`;
  }
}

/** Set the tab's title; a hidden tab gets it when it is seen again. */
export function setTitle(text) {
  title.own = text;
  if (!document.hidden) document.title = text;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  title.unseen = 0;
  document.title = title.own;
});

// --- parts of the page ---------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** The icon of a status, from the page's sprite. */
export function glyph(status) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#s-${status}`);
  svg.append(use);
  return svg;
}

/** Show `status` in a chip. */
export function setChip(chip, status) {
  chip.dataset.status = status;
  chip.querySelector("use").setAttribute("href", `#s-${status}`);
  chip.querySelector('[data-slot="status"]').textContent = status;
}

/** Highlight what has just changed, unless the user prefers reduced motion. */
export function highlight(element) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const from = getComputedStyle(document.documentElement).getPropertyValue("--accent-soft");
  element.animate([{ backgroundColor: from }, {}], { duration: 1800, easing: "ease-out" });
}

/** An event as "Dewi moved it to Shipped": who did what, without the order's number. */
export function describeAction({ type, status, actor, changes }) {
  const who = actor?.name ?? "Somebody";
  switch (type) {
    case "status_changed":
      return status === "Cancelled" ? `${who} cancelled it` : `${who} moved it to ${status}`;
    case "description_changed":
      return `${who} changed the description`;
    case "driver_assigned":
      return changes?.driver ? `${who} assigned it to ${changes.driver.name}` : `${who} took the driver off it`;
    case "deleted":
      return `${who} deleted it`;
    default:
      return `${who} changed it`;
  }
}

/** An event as "Order #7 is Shipped": the result. */
export function describe(event) {
  const order = `#${event.order_id}`;
  switch (event.type) {
    case "status_changed":
      return `Order ${order} is ${event.status}`;
    case "description_changed":
      return `Order ${order} has a new description`;
    case "driver_assigned":
      return event.changes?.driver
        ? `Order ${order} goes with ${event.changes.driver.name}`
        : `Order ${order} has no driver any more`;
    case "deleted":
      return `Order ${order} has been deleted`;
    default:
      return `Order ${order} has been placed`;
  }
}

/**
 * The page's one connection, how it is doing, and what is said when something changes.
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

/** A connection that is back within this many milliseconds is not worth a flicker. */
const BLINK = 700;

/** Milliseconds that a toast stays. */
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
  badge.hidden = state === "signed_out"; // the page itself says so, and why
  if (state === "live") tellTransport(socket.io.engine);
}

/** Where WebSockets are blocked, the connection is one of long polls: live, but not as good. */
function tellTransport(engine) {
  if (engine.transport.name === "websocket") return;
  badge.textContent = "Live (polling)";
  badge.title = "WebSockets are blocked here; changes come by polling, a little later.";
  engine.once("upgrade", () => badge.dataset.state === "live" && show("live"));
}

stream.addEventListener("state", ({ detail: { state, problem } }) => {
  if (state === "closed") return; // ours, see below: the reason stays on the badge
  clearTimeout(waiting);
  if (state === "reconnecting") waiting = setTimeout(show, BLINK, state);
  else show(state);
  if (state === "signed_out") {
    stream.close();
    showSignedOut(problem?.detail);
  }
});
waiting = setTimeout(show, BLINK, stream.state);

// A page that comes back from the browser's own cache starts anew: its connection is long gone.
addEventListener("pageshow", (event) => event.persisted && location.reload());

// --- what is said --------------------------------------------------------------------------------

const toasts = document.getElementById("toasts");
const title = { own: document.title, unseen: 0 };

/** Say `text` shortly: on the page, to screen readers, and in the tab's title when it is hidden. */
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

/** The tab's title while the page is seen. */
export function setTitle(text) {
  title.own = text;
  if (!document.hidden) document.title = text;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  title.unseen = 0;
  document.title = title.own;
});

// --- small parts ---------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** The sign of a status, from the page's sprite. */
export function glyph(status) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#s-${status}`);
  svg.append(use);
  return svg;
}

/** Make a chip say `status`. */
export function setChip(chip, status) {
  chip.dataset.status = status;
  chip.querySelector("use").setAttribute("href", `#s-${status}`);
  chip.querySelector('[data-slot="status"]').textContent = status;
}

/** Draw the eye to what has just changed, gently. */
export function highlight(element) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const from = getComputedStyle(document.documentElement).getPropertyValue("--accent-soft");
  element.animate([{ backgroundColor: from }, {}], { duration: 1800, easing: "ease-out" });
}

/** What somebody did with an order, in one line without its number. */
export function deed({ type, status, actor, changes }) {
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

/** What an event says in one line. */
export function sentence(event) {
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

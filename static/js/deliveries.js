/**
 * A driver's page: the server's list, with unconfirmed taps shown on their cards. A tapped card stays
 * in its place, with an undo button, until the server has confirmed the transition. The result is
 * shown at the bottom of the screen; a refusal stays there until the driver has closed it.
 */

import { describeAction, stream } from "./connection.js";
import { refresher } from "./refresh.js";
import { get, viewer } from "./session.js";
import { blockMoved, blockTaps, isBlocked } from "./tap-guard.js";
import { Taps } from "./taps.js";
import { setTime } from "./times.js";

const CARDS = ".job";

/** Milliseconds for which a success is shown. */
const SHOWN = 6000;

const taps = new Taps();

const card = (id) => document.querySelector(`${CARDS}[data-order="${id}"]`);
const soon = refresher({
  pause: 250,
  around: (change) =>
    blockMoved(CARDS, () => {
      change();
      forgetShownTaps();
      showTaps();
    }),
});

stream.feed({ onEvent: soon, onResume: soon });
stream.addEventListener("state", ({ detail }) => detail.state === "live" && taps.flush());

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-move]")) return;
  event.preventDefault();
  const job = form.closest(CARDS);
  taps.add({
    id: job.dataset.order,
    status: form.elements.status.value,
    note: form.elements.note.value.trim(),
    version: Number(form.elements.version.value),
  });
  blockTaps(job); // the second tap of a double tap must not undo the first
  job.querySelector(".undo")?.focus({ preventScroll: true });
});

document.addEventListener("click", (event) => {
  const undo = event.target.closest(".undo");
  if (!undo) return;
  const job = undo.closest(CARDS);
  if (isBlocked(job)) return;
  taps.undo(job.dataset.order);
  blockTaps(job);
  job.querySelector(".btn-job")?.focus({ preventScroll: true });
});

taps.addEventListener("changed", () => blockMoved(CARDS, showTaps));

// --- the cards -----------------------------------------------------------------------------------

const WORDS = {
  held: "",
  sending: " – saving …",
  waiting: " – waiting for the network …",
  done: "",
  refused: " – not changed",
};

/** Show each unconfirmed tap on its card. */
function showTaps() {
  for (const job of document.querySelectorAll(CARDS)) {
    const tap = taps.get(job.dataset.order);
    const line = job.querySelector('[data-slot="pending"]');
    const shown = tap ? `${tap.status}${WORDS[tap.state]}` : "";
    // As high as the button that it replaces, so that the cards below do not move.
    if (tap && line.hidden) line.style.minHeight = `${actions(job)?.offsetHeight ?? 0}px`;
    job.toggleAttribute("data-pending", tap !== undefined);
    line.hidden = !tap;
    if (line.dataset.shown === `${shown} ${tap?.state}`) continue;
    line.dataset.shown = `${shown} ${tap?.state}`;
    line.replaceChildren(shown);
    if (tap?.state === "held") line.append(button("undo btn btn-outline", "Undo", `of #${tap.id}`));
  }
  showWaiting();
}

/** The form that changes the order's status, as the server rendered it. */
const actions = (job) => job.querySelector(":scope > form, :scope > .confirm");

/** Forget answered taps whose orders the list shows in a later version, or not any more. */
function forgetShownTaps() {
  for (const { id, version, state } of taps.all) {
    const job = card(id);
    const isShown = !job || Number(job.dataset.version) > version;
    if (isShown && (state === "done" || state === "refused")) taps.forget(id);
  }
}

function button(classes, text, more) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = classes;
  const hidden = document.createElement("span");
  hidden.className = "visually-hidden";
  hidden.textContent = ` ${more}`;
  made.append(text, hidden);
  return made;
}

// --- results, at the bottom of the screen --------------------------------------------------------

const STORE = `ordertrack-refusals-${viewer}`;
const bar = document.getElementById("tap-bar");
const news = bar.querySelector(".tap-news");
const refusals = new Map(JSON.parse(localStorage.getItem(STORE) ?? "[]")); // order id → parts

taps.addEventListener("confirmed", ({ detail: { tap } }) => {
  const line = item("done");
  line.append(`Order #${tap.id} is ${tap.status}.`);
  add(line);
  setTimeout(() => remove(line), SHOWN);
  soon();
});

taps.addEventListener("refused", async ({ detail: { tap, problem } }) => {
  const head = `Order #${tap.id} was not set to ${tap.status}.`;
  // Shown and stored at once, in case the history cannot be read; then with the history.
  refuse(tap.id, { head, events: [], detail: reason(problem) });
  soon();
  const events = await eventsSince(tap);
  if (events.length > 0) refuse(tap.id, { head, events, detail: "" });
});

/** The reason, as far as the refusal itself tells it. */
function reason({ status, detail }) {
  if (status === 404) return "It has been deleted, or you are not allowed to see it any more.";
  if (status === 409 || status === 412) return "It was changed before your tap arrived.";
  return detail;
}

/** The latest events after the version that was tapped; none if they cannot be read. */
async function eventsSince({ id, version }) {
  try {
    const response = await get(`/api/orders/${id}/history?after=${version}&limit=500`);
    if (!response.ok) return [];
    const { events } = await response.json();
    return events.slice(-3);
  } catch {
    return [];
  }
}

function refuse(id, parts) {
  refusals.set(id, parts);
  save();
  const old = news.querySelector(`[data-order="${id}"]`);
  const line = refusalLine(id, parts);
  if (old) old.replaceWith(line);
  else add(line);
}

function refusalLine(id, { head, events, detail }) {
  const line = item("refused");
  line.dataset.order = id;
  const text = document.createElement("div");
  const strong = document.createElement("strong");
  strong.textContent = head;
  text.append(strong, " ", detail);
  for (const event of events) {
    const what = document.createElement("p");
    what.dir = "auto";
    const time = document.createElement("time");
    setTime(time, event.updated_at);
    what.append(`${describeAction(event)}, `, time);
    if (event.note) what.append(`: “${event.note}”`);
    text.append(what);
  }
  const read = button("read btn btn-outline", "OK", `, I have read what happened to #${id}`);
  read.addEventListener("click", () => {
    refusals.delete(id);
    save();
    remove(line);
  });
  line.append(text, read);
  return line;
}

function save() {
  localStorage.setItem(STORE, JSON.stringify([...refusals]));
}

function item(kind) {
  const line = document.createElement("li");
  line.dataset.kind = kind;
  return line;
}

function add(line) {
  news.append(line);
  const done = [...news.querySelectorAll('[data-kind="done"]')];
  for (const old of done.slice(0, -2)) old.remove();
  blockTaps(bar);
  showBar();
}

function remove(line) {
  line.remove();
  blockTaps(bar);
  showBar();
}

function showWaiting() {
  const number = taps.all.filter((tap) => tap.state === "waiting").length;
  const line = bar.querySelector(".tap-waiting");
  const text = number > 0 ? `${number} waiting for the network` : "";
  if (line.textContent === text) return;
  line.textContent = text;
  line.hidden = number === 0;
  showBar();
}

function showBar() {
  bar.hidden = news.children.length === 0 && bar.querySelector(".tap-waiting").hidden;
}

for (const [id, parts] of refusals) add(refusalLine(id, parts));
showTaps();
taps.flush();

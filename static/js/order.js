/**
 * One order's page: what the server rendered, plus each event after it, is what a reload would show.
 */

import { announce, glyph, highlight, sentence, setChip, setTitle, stream } from "./live.js";
import { keep, renewPage, typedIn } from "./kept.js";
import { viewer } from "./session.js";
import { setTime } from "./times.js";

const page = document.getElementById("order");
const slot = (root, name) => root.querySelector(`[data-slot="${name}"]`);

stream.watch(page.dataset.order, Number(page.dataset.version), {
  onEvent: apply,
  onReset: () => renewPage("So much has changed that this page has to be loaded again."),
  // Not ours to see any more: the server's page says so.
  onError: ({ status }) =>
    (status === 403 || status === 404) && renewPage("This order is not yours to see any more."),
});

function apply(event) {
  page.dataset.version = event.version;
  addEntry(event);
  setTime(document.querySelector("#changed time"), event.updated_at);
  if (event.type === "status_changed") moveTo(event);
  if (event.type === "driver_assigned") setDriver(event.changes.driver);
  const kept = event.type === "description_changed" && !setDescription(event.changes.description);
  if (!kept) bringFormsUpTo(event.version);
  if (event.type === "deleted") showGone(event);
  if (event.actor.id !== viewer) announce(sentence(event), event.status);
}

// --- the history ---------------------------------------------------------------------------------

function addEntry(event) {
  const removed = event.type === "driver_assigned" && event.changes.driver === null;
  const cancelled = event.type === "status_changed" && event.status === "Cancelled";
  const kind = removed ? "driver_removed" : cancelled ? "cancelled" : event.type;
  const template = document.getElementById(`entry-${kind}`);
  if (!template) return; // a type of event that this page does not know
  const entry = template.content.firstElementChild.cloneNode(true);
  entry.dataset.version = event.version;
  entry.dataset.status = event.status;
  entry.querySelector("use").setAttribute("href", `#s-${event.status}`);
  const texts = {
    actor: event.actor.name,
    previous: event.previous_status,
    status: event.status,
    description: event.changes?.description,
    driver: event.changes?.driver?.name,
    note: event.note,
  };
  for (const place of entry.querySelectorAll("[data-slot]")) {
    const text = texts[place.dataset.slot];
    if (text === null || text === undefined) place.remove();
    else place.textContent = text;
  }
  setTime(entry.querySelector("time"), event.updated_at);
  document.getElementById("history").prepend(entry);
  highlight(entry);
}

// --- the line ------------------------------------------------------------------------------------

function moveTo({ status, updated_at, actor, order_id }) {
  page.dataset.status = status;
  setChip(document.querySelector("#state .chip"), status);
  setTitle(`#${order_id} ${status} – OrderTrack`);
  const route = document.getElementById("route");
  const left = route.querySelector('[data-place="here"]');
  const reached = route.querySelector(`[data-stop="${status}"]`) ?? addStopAfter(left, status);
  left.dataset.place = "behind";
  left.removeAttribute("aria-current");
  reached.dataset.place = "here";
  reached.setAttribute("aria-current", "step");
  const time = document.createElement("time");
  setTime(time, updated_at);
  reached.querySelector(".stop-when").replaceChildren(time);
  reached.querySelector(".stop-who").textContent = actor.name;
  if (status === "Cancelled") {
    for (const stop of route.querySelectorAll('[data-place="ahead"]')) {
      stop.dataset.place = "skipped";
      stop.querySelector(".stop-who").textContent = "not reached";
    }
  }
  const lost = [];
  for (const part of document.querySelectorAll("[data-when]")) {
    part.hidden = !part.dataset.when.split(" ").includes(status);
    if (part.hidden) lost.push(...typedIn(part));
  }
  const what = status === "Cancelled" ? "cancelled the order" : `moved the order to ${status}`;
  keep(lost, `${actor.name} ${what}, so this cannot be sent any more.`);
  if (status !== "Cancelled") page.dataset.mover = actor.name;
  showDriver();
}

function addStopAfter(stop, status) {
  const added = stop.cloneNode(true);
  added.dataset.stop = status;
  added.querySelector(".dot").replaceChildren(glyph(status));
  added.querySelector(".stop-name").textContent = status;
  stop.after(added);
  return added;
}

// --- the rest ------------------------------------------------------------------------------------

/** False: somebody is writing another one here, and keeps it; sending it will be refused. */
function setDescription(description) {
  slot(page, "description").textContent = description;
  const field = document.getElementById("description");
  if (!field) return true;
  const touched = field.value !== field.defaultValue;
  if (!touched) field.defaultValue = description;
  return !touched;
}

function setDriver(driver) {
  page.dataset.driver = driver?.name ?? "";
  showDriver();
  const choice = document.getElementById("driver");
  if (choice) choice.value = driver?.id ?? "";
}

/** Whose order it is to deliver; where nobody is assigned, whoever has moved it so far. */
function showDriver() {
  const { driver, mover, status } = page.dataset;
  const nobody = status === "Completed" || status === "Cancelled" ? "Nobody" : "Nobody yet";
  document.getElementById("driver-label").textContent = mover && !driver ? "Moved by" : "Driver";
  document.getElementById("driver-name").textContent = driver || mover || nobody;
}

/** The forms act on the state that is shown now. */
function bringFormsUpTo(version) {
  for (const field of page.querySelectorAll('input[name="version"]')) field.value = version;
}

function showGone(event) {
  const notice = document.getElementById("gone");
  slot(notice, "actor").textContent = event.actor.name;
  notice.hidden = false;
  const actions = document.getElementById("actions");
  keep(typedIn(actions), `${event.actor.name} deleted the order, so this cannot be sent any more.`);
  actions.hidden = true;
}

/**
 * One order's page: applies each new event to what the server has rendered, so that the page always
 * shows what a reload would show.
 */

import { announce, describe, glyph, highlight, setChip, setTitle, stream } from "./connection.js";
import { viewer } from "./session.js";
import { setTime } from "./times.js";
import { reloadPage, showUnsent, unsentTexts } from "./unsent-text.js";

const page = document.getElementById("order");
const slot = (root, name) => root.querySelector(`[data-slot="${name}"]`);

stream.watch(page.dataset.order, Number(page.dataset.version), {
  onEvent: apply,
  onReset: () => reloadPage("So much has changed that this page has to be loaded again."),
  // The server's page says what happened.
  onError: ({ status }) =>
    (status === 403 || status === 404) &&
    reloadPage("You are not allowed to see this order any more."),
});

function apply(event) {
  page.dataset.version = event.version;
  addEntry(event);
  setTime(document.querySelector("#changed time"), event.updated_at);
  if (event.type === "status_changed") moveTo(event);
  if (event.type === "driver_assigned") setDriver(event.changes.driver);
  const isEditing =
    event.type === "description_changed" && !setDescription(event.changes.description);
  if (!isEditing) setFormVersions(event.version);
  if (event.type === "deleted") showDeleted(event);
  if (event.actor.id !== viewer) announce(describe(event), event.status);
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

// --- progress ------------------------------------------------------------------------------------

function moveTo({ status, updated_at, actor, order_id }) {
  page.dataset.status = status;
  setChip(document.querySelector("#state .chip"), status);
  setTitle(`#${order_id} ${status} – OrderTrack`);
  const flow = document.getElementById("flow");
  const left = flow.querySelector('[data-progress="current"]');
  const reached = flow.querySelector(`[data-step="${status}"]`) ?? addStepAfter(left, status);
  left.dataset.progress = "done";
  left.removeAttribute("aria-current");
  reached.dataset.progress = "current";
  reached.setAttribute("aria-current", "step");
  const time = document.createElement("time");
  setTime(time, updated_at);
  reached.querySelector(".step-when").replaceChildren(time);
  reached.querySelector(".step-who").textContent = actor.name;
  if (status === "Cancelled") {
    for (const step of flow.querySelectorAll('[data-progress="upcoming"]')) {
      step.dataset.progress = "skipped";
      step.querySelector(".step-who").textContent = "not reached";
    }
  }
  const lost = [];
  for (const part of document.querySelectorAll("[data-when]")) {
    part.hidden = !part.dataset.when.split(" ").includes(status);
    if (part.hidden) lost.push(...unsentTexts(part));
  }
  const what = status === "Cancelled" ? "cancelled the order" : `moved the order to ${status}`;
  showUnsent(lost, `${actor.name} ${what}, so this cannot be sent any more.`);
  if (status !== "Cancelled") page.dataset.mover = actor.name;
  showDriver();
}

function addStepAfter(step, status) {
  const added = step.cloneNode(true);
  added.dataset.step = status;
  added.querySelector(".dot").replaceChildren(glyph(status));
  added.querySelector(".step-name").textContent = status;
  step.after(added);
  return added;
}

// --- the rest ------------------------------------------------------------------------------------

/**
 * Show a new description. False: the field here contains another one that is being written. It is
 * left alone, and its form keeps its version, so that sending it is refused.
 */
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

/** Show the order's driver; where none is assigned, the person who took the latest step. */
function showDriver() {
  const { driver, mover, status } = page.dataset;
  const nobody = status === "Completed" || status === "Cancelled" ? "Nobody" : "Nobody yet";
  document.getElementById("driver-label").textContent = mover && !driver ? "Moved by" : "Driver";
  document.getElementById("driver-name").textContent = driver || mover || nobody;
}

/** Let the forms act on the version that is shown now. */
function setFormVersions(version) {
  for (const field of page.querySelectorAll('input[name="version"]')) field.value = version;
}

function showDeleted(event) {
  const notice = document.getElementById("gone");
  slot(notice, "actor").textContent = event.actor.name;
  notice.hidden = false;
  const actions = document.getElementById("actions");
  const reason = `${event.actor.name} deleted the order, so this cannot be sent any more.`;
  showUnsent(unsentTexts(actions), reason);
  actions.hidden = true;
}

/**
 * Lists that follow the feed: a row changes at once, and soon after the whole list is refreshed from
 * the server (new orders, orders that a filter adds or removes, the counts).
 */

import { announce, describe, highlight, setChip, stream } from "./connection.js";
import { refresher } from "./refresh.js";
import { viewer } from "./session.js";
import { setTime } from "./times.js";

const isBoard = document.querySelector(".board, .filters") !== null;
const soon = refresher({
  around(change) {
    change();
    countSelected();
  },
});

stream.feed({
  onEvent(event) {
    const row = document.querySelector(`[data-refresh="orders"] [data-order="${event.order_id}"]`);
    if (row) apply(row, event);
    const isOurs = row !== null || event.actor.id === viewer;
    if (isBoard || isOurs) soon();
    if (!isBoard && isOurs && event.actor.id !== viewer) announce(describe(event), event.status);
  },
  onResume: soon,
});

function apply(row, event) {
  if (event.version <= Number(row.dataset.version)) return;
  row.dataset.version = event.version;
  row.dataset.status = event.status;
  setChip(row.querySelector(".chip"), event.status);
  setTime(row.querySelector('[data-slot="changed"] time'), event.updated_at);
  highlight(row);
}

// --- the selected orders -------------------------------------------------------------------------

const boxes = () => [...document.querySelectorAll('[name="order"]')];
const pickAll = document.getElementById("pick-all");

function countSelected() {
  if (!pickAll) return;
  const number = boxes().filter((box) => box.checked).length;
  document.getElementById("selected").textContent =
    number > 0 ? `With the ${number} selected:` : "With the selected orders:";
  pickAll.checked = number > 0 && number === boxes().length;
  pickAll.indeterminate = number > 0 && !pickAll.checked;
  for (const button of document.querySelectorAll(".bulk button")) button.disabled = number === 0;
}

/** With the shift key, a click selects or deselects the whole range from the last clicked order. */
let last = null;
function pickRange(event) {
  const box = event.target;
  if (!box.matches?.('[name="order"]')) return;
  if (event.shiftKey && last?.isConnected) {
    const all = boxes();
    const ends = [all.indexOf(last), all.indexOf(box)].sort((a, b) => a - b);
    for (const one of all.slice(ends[0], ends[1] + 1)) one.checked = box.checked;
    countSelected();
  }
  last = box;
}

if (pickAll) {
  document.getElementById("pick-all-box").hidden = false;
  pickAll.addEventListener("change", () => {
    for (const box of boxes()) box.checked = pickAll.checked;
  });
  document.addEventListener("change", countSelected);
  document.addEventListener("click", pickRange);
  addEventListener("pageshow", countSelected); // browsers restore ticked boxes
  countSelected();
}

/**
 * A driver's screen: the server's list with the taps that are under way laid over it. A tap shows at
 * once; the server's answer confirms it, or takes it back and says why.
 */

import { announce, stream } from "./live.js";
import { refresher } from "./swap.js";
import { Taps } from "./taps.js";

const taps = new Taps();
const refused = new Map(); // order id → why

const card = (id) => document.querySelector(`.job[data-order="${id}"]`);
const soon = refresher(overlay, 250);

stream.feed({ onEvent: soon, onResume: soon });
stream.addEventListener("state", ({ detail }) => detail.state === "live" && taps.flush());

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-move]")) return;
  event.preventDefault();
  const job = form.closest(".job");
  refused.delete(job.dataset.order);
  taps.add({
    id: job.dataset.order,
    status: form.elements.status.value,
    note: form.elements.note.value.trim(),
    version: Number(form.elements.version.value),
    state: "sending",
  });
});

taps.addEventListener("changed", overlay);
taps.addEventListener("answered", soon);

taps.addEventListener("refused", ({ detail: { tap, problem } }) => {
  refused.set(tap.id, problem.detail);
  announce(`Order #${tap.id} was not changed. ${problem.detail}`);
});

/** Show what was tapped as done, and what was refused as it is. */
function overlay() {
  for (const tap of taps.all) {
    const job = card(tap.id);
    if (!job) continue;
    job.dataset.pending = "";
    job.dataset.status = tap.status;
    const list = document.querySelector(`[data-stage="${tap.status}"] .jobs`);
    if (list && job.parentElement !== list) list.append(job);
    for (const part of job.querySelectorAll("form, .confirm")) part.hidden = true;
    const word = tap.state === "waiting" ? "waiting for the network" : "saving";
    say(job, `${tap.status} – ${word} …`);
  }
  for (const [id, why] of refused) {
    const job = card(id);
    if (job) say(job, why, "refused");
    else refused.delete(id);
  }
  for (const stage of document.querySelectorAll(".stage")) {
    const number = stage.querySelectorAll(".job").length;
    stage.querySelector(".empty-line").hidden = number > 0;
    const count = stage.querySelector(".count");
    if (!count.textContent.endsWith("+")) count.textContent = number;
  }
}

function say(job, text, kind = "pending") {
  const line = job.querySelector('[data-slot="pending"]');
  line.textContent = text;
  line.dataset.kind = kind;
  line.hidden = false;
}

overlay();
taps.flush();

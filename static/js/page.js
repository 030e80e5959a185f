/** On every page: times in the reader's zone, and a page of ours for when there is no network. */

import { showTimes } from "./times.js";

showTimes(document);

// After everything else has been fetched. Without it all works, but for that one page.
addEventListener("load", () => {
  navigator.serviceWorker?.register("/worker.js").catch(() => {});
});

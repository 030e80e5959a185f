/** On every page: shows times in the reader's zone, and registers the offline page. */

import { showTimes } from "./times.js";

showTimes(document);

// When everything else has been fetched. Without it only the offline page is missing.
addEventListener("load", () => {
  navigator.serviceWorker?.register("/worker.js").catch(() => {});
});

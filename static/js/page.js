/** On every page: times in the reader's zone. */

import { showTimes } from "./times.js";

showTimes(document);

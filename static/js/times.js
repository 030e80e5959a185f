/**
 * Shows times in the reader's zone and format. The server writes them in UTC, which the title keeps.
 */

const thisYear = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const otherYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Fill a time element from an RFC 3339 time in UTC. */
export function setTime(element, iso) {
  const moment = new Date(iso);
  const format = moment.getFullYear() === new Date().getFullYear() ? thisYear : otherYear;
  element.dateTime = iso;
  element.title = `${iso.slice(0, 10)} ${iso.slice(11, 19)} UTC`;
  element.textContent = format.format(moment);
}

/** Show every time within `root` in the reader's zone. */
export function showTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) setTime(element, element.dateTime);
}

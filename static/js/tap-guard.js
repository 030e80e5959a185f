/**
 * Blocks taps on an element that has just appeared or moved: the finger was on its way to what was
 * there before.
 */

/** Milliseconds. The second tap of a double tap comes within some 600. */
const BLOCKED = 800;

const ends = new WeakMap(); // element → when it takes taps again

/** Whether `element` takes no taps now. */
export const isBlocked = (element) => (ends.get(element) ?? 0) > performance.now();

/** Block taps on `element` for a moment. */
export function blockTaps(element) {
  ends.set(element, performance.now() + BLOCKED);
  element.dataset.tapsBlocked = "";
  setTimeout(() => isBlocked(element) || delete element.dataset.tapsBlocked, BLOCKED + 20);
}

/** Run `change`, then block taps on the elements of `selector` that it has added or moved. */
export function blockMoved(selector, change) {
  const before = new Map(all(selector).map((one) => [one, one.getBoundingClientRect().top]));
  change();
  for (const one of all(selector)) {
    const was = before.get(one);
    const moved = was === undefined || Math.abs(one.getBoundingClientRect().top - was) > 2;
    if (moved) blockTaps(one);
    else if (isBlocked(one)) one.dataset.tapsBlocked = "";
  }
}

const all = (selector) => [...document.querySelectorAll(selector)];

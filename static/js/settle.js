/**
 * A place that has just changed takes no tap: the finger was on its way to what was there before.
 */

/** Milliseconds; a second tap of the same intention comes within some 600. */
const SETTLE = 800;

const ends = new WeakMap(); // element → when it takes taps again

/** Whether `element` has just come to where it is. */
export const isSettling = (element) => (ends.get(element) ?? 0) > performance.now();

/** Let `element` take no tap for a moment. */
export function settle(element) {
  ends.set(element, performance.now() + SETTLE);
  element.dataset.settling = "";
  setTimeout(() => isSettling(element) || delete element.dataset.settling, SETTLE + 20);
}

/** Run `change`, then settle whatever of `selector` is new or has moved by it. */
export function settleAround(selector, change) {
  const before = new Map(all(selector).map((one) => [one, one.getBoundingClientRect().top]));
  change();
  for (const one of all(selector)) {
    const was = before.get(one);
    const moved = was === undefined || Math.abs(one.getBoundingClientRect().top - was) > 2;
    if (moved) settle(one);
    else if (isSettling(one)) one.dataset.settling = "";
  }
}

const all = (selector) => [...document.querySelectorAll(selector)];

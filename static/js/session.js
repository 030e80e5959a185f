/**
 * Who is signed in, and requests in that name. The tokens themselves are in cookies that no script
 * can read; what a write has to carry besides stands in the page.
 */

import { panel as keptPanel, typedIn } from "./kept.js";

const csrfToken = () => document.querySelector('meta[name="csrf-token"]').content;

/** The signed-in user's id. */
export const viewer = document.body.dataset.viewer;

/** Send JSON. Rejects when there is no answer; the server renews the access cookie as it needs to. */
export function send(method, path, body, headers = {}) {
  return fetch(path, {
    method,
    headers: {
      "Content-Type": "application/json",
      "X-CSRF-TOKEN": csrfToken(),
      Accept: "application/json",
      ...headers,
    },
    body: JSON.stringify(body),
    keepalive: true, // also when the page is left meanwhile
    signal: AbortSignal.timeout(10_000),
  });
}

/** Ask for JSON. Rejects when there is no answer. */
export function get(path) {
  return fetch(path, {
    headers: { Accept: "application/json" },
    cache: "no-store",
    signal: AbortSignal.timeout(10_000),
  });
}

/** Get a new access cookie. False: the session has ended. Rejects when that cannot be known. */
export async function renew() {
  const response = await send("POST", "/session/renew", {});
  if (response.status >= 500 || response.status === 429) throw new Error(response.statusText);
  return response.ok;
}

/**
 * The page says that the session is over and why, shows nothing of it any more, and leads to the way
 * in. What was being written is still the writer's: it can be copied.
 */
export function showSignedOut(reason) {
  const main = document.getElementById("main");
  const typed = typedIn(main);
  const here = encodeURIComponent(location.pathname + location.search);
  const panel = document.createElement("section");
  panel.className = "fault";
  panel.setAttribute("role", "alert");
  const heading = document.createElement("h1");
  heading.textContent = "You are signed out";
  const text = document.createElement("p");
  // "Signed out" is what the heading says; another reason is told in the server's words.
  const isPlain = !reason || /signed out|log in/i.test(reason);
  text.textContent = isPlain ? "This session was ended here or in another window." : reason;
  const link = document.createElement("a");
  link.className = "btn btn-primary";
  link.href = `/login?next=${here}`;
  link.textContent = "Sign in again";
  panel.append(heading, text);
  if (typed.length > 0) panel.append(keptPanel(typed, "This was not sent.", false));
  panel.append(link);
  main.replaceChildren(panel);
}

/**
 * The session of the signed-in user, and requests in it. Its tokens are in cookies that no script can
 * read; the CSRF token, which each write has to carry, is in the page.
 */

import { unsentPanel, unsentTexts } from "./unsent-text.js";

const csrfToken = () => document.querySelector('meta[name="csrf-token"]').content;

/** The signed-in user's id. */
export const viewer = document.body.dataset.viewer;

/** Send JSON. Rejects when there is no answer. The server renews an expired access cookie itself. */
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
    keepalive: true, // also when the user leaves the page meanwhile
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

/** Get a new access cookie. False: the session has ended. Rejects when the server cannot tell. */
export async function renew() {
  const response = await send("POST", "/session/renew", {});
  if (response.status >= 500 || response.status === 429) throw new Error(response.statusText);
  return response.ok;
}

/**
 * Replace the page's content by a notice that the session has ended, with the reason and a link to
 * sign in. Text that was typed and not sent is shown, to be copied.
 */
export function showSignedOut(reason) {
  const main = document.getElementById("main");
  const unsent = unsentTexts(main);
  const here = encodeURIComponent(location.pathname + location.search);
  const panel = document.createElement("section");
  panel.className = "fault";
  panel.setAttribute("role", "alert");
  const heading = document.createElement("h1");
  heading.textContent = "You are signed out";
  const text = document.createElement("p");
  // The heading says "signed out" already; any other reason is shown in the server's words.
  const isPlain = !reason || /signed out|log in/i.test(reason);
  text.textContent = isPlain ? "This session was ended here or in another window." : reason;
  const link = document.createElement("a");
  link.className = "btn btn-primary";
  link.href = `/login?next=${here}`;
  link.textContent = "Sign in again";
  panel.append(heading, text);
  if (unsent.length > 0) panel.append(unsentPanel(unsent, "This was not sent.", false));
  panel.append(link);
  main.replaceChildren(panel);
}

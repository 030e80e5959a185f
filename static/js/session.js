/**
 * Who is signed in, and requests in that name. The tokens themselves are in cookies that no script
 * can read; what a write has to carry besides stands in the page.
 */

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
    signal: AbortSignal.timeout(10_000),
  });
}

/** Get a new access cookie. False: the session has ended. Rejects when that cannot be known. */
export async function renew() {
  const response = await send("POST", "/session/renew", {});
  if (response.status >= 500 || response.status === 429) throw new Error(response.statusText);
  return response.ok;
}

/** The page says that the session is over, shows nothing of it any more, and leads to the way in. */
export function showSignedOut(reason) {
  const here = encodeURIComponent(location.pathname + location.search);
  const panel = document.createElement("section");
  panel.className = "fault";
  panel.setAttribute("role", "alert");
  const heading = document.createElement("h1");
  heading.textContent = "You are signed out";
  const text = document.createElement("p");
  text.textContent = reason ?? "This session has ended, here or in another window.";
  const link = document.createElement("a");
  link.className = "btn btn-primary";
  link.href = `/login?next=${here}`;
  link.textContent = "Sign in again";
  panel.append(heading, text, link);
  document.getElementById("main").replaceChildren(panel);
}

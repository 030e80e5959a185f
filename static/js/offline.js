/** The offline page, shown in place of a page that cannot be reached: loads that one when it can. */

const PAUSE = 3000;

async function tryAgain() {
  try {
    await fetch(location.href, { method: "HEAD", cache: "no-store" });
    location.reload();
  } catch {
    setTimeout(tryAgain, PAUSE);
  }
}

if (location.pathname !== "/offline") setTimeout(tryAgain, PAUSE);

/** On the page that stands for one that could not be reached: load that one as soon as it can be. */

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

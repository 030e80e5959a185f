/**
 * The page for when there is no network. A service worker sees every request of this site, so this
 * one answers as little as it can: pages that cannot be reached, and the files of that one page.
 * What anybody is shown, what is sent, and all live traffic pass it by; it keeps nothing private.
 */

const PAGE = "/offline";
const FILES = [{% for file in files %}"{{ asset(file) }}"{{ ", " if not loop.last }}{% endfor %}];
const CACHE = `offline ${FILES.join(" ")}`; // another release has other addresses

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll([PAGE, ...FILES])));
});

addEventListener("activate", (event) => {
  // Pages need not wait until this worker has started.
  event.waitUntil(Promise.all([removeOthers(), registration.navigationPreload?.enable()]));
});

async function removeOthers() {
  for (const name of await caches.keys()) if (name !== CACHE) await caches.delete(name);
}

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.mode === "navigate" && request.method === "GET") event.respondWith(page(event));
  else if (FILES.includes(new URL(request.url).pathname)) event.respondWith(file(request));
});

async function page({ request, preloadResponse }) {
  try {
    return (await preloadResponse) ?? (await fetch(request));
  } catch (error) {
    const kept = await caches.match(PAGE);
    if (kept) return kept;
    throw error;
  }
}

async function file(request) {
  return (await caches.match(request)) ?? fetch(request);
}

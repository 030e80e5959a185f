/**
 * The service worker: shows the offline page where a page cannot be reached.
 *
 * A service worker sees every request of its site, so this one handles as few as it can: navigations
 * that fail, and the files of the offline page. All other requests go to the network, and nothing
 * private is cached.
 */

const PAGE = "/offline";
const FILES = [{% for file in files %}"{{ asset(file) }}"{{ ", " if not loop.last }}{% endfor %}];
const CACHE = `offline ${FILES.join(" ")}`; // another release has other URLs

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll([PAGE, ...FILES])));
});

addEventListener("activate", (event) => {
  // Fetch pages while this worker is still starting.
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
    const cached = await caches.match(PAGE);
    if (cached) return cached;
    throw error;
  }
}

async function file(request) {
  return (await caches.match(request)) ?? fetch(request);
}

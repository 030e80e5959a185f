/**
 * Saves text that was typed into a form which cannot be sent any more, because its order has changed
 * or the session has ended: the text is shown at the top of the page, with the reason, to be copied.
 */

/** The texts that were typed within `root` and not sent: [{label, text, field}]. */
export function unsentTexts(root) {
  return [...root.querySelectorAll('textarea:not([readonly]), input[name="note"]')]
    .filter((field) => field.value.trim() !== "" && field.value !== field.defaultValue)
    .map((field) => ({
      label: field.labels?.[0]?.textContent.trim() ?? "Text",
      text: field.value,
      field,
    }));
}

/** Show `texts` at the top of the page, and empty their fields. */
export function showUnsent(texts, why) {
  if (texts.length === 0) return;
  document.getElementById("main").prepend(unsentPanel(texts, why));
  for (const { field } of texts) field.value = field.defaultValue;
}

/** Load the page again; where text was typed, show it first, with a link that loads the page. */
export function reloadPage(why) {
  const texts = unsentTexts(document.getElementById("main"));
  if (texts.length === 0) {
    location.reload();
    return;
  }
  const link = document.createElement("a");
  link.className = "btn btn-primary";
  link.href = location.href;
  link.textContent = "Load the page again";
  document.getElementById("main").replaceChildren(unsentPanel(texts, why, false), link);
}

/** A notice with the texts. `closable`: whether it has a button that removes it. */
export function unsentPanel(texts, why, closable = true) {
  const notice = document.createElement("section");
  notice.className = "notice notice-warning unsent";
  notice.setAttribute("role", "alert");
  const reason = document.createElement("p");
  reason.dir = "auto";
  const strong = document.createElement("strong");
  strong.textContent = why;
  reason.append(strong, " What you wrote is kept here:");
  notice.append(reason);
  texts.forEach(({ label, text }, number) => notice.append(...copyable(label, text, number)));
  if (closable) {
    const close = button("Close");
    close.addEventListener("click", () => notice.remove());
    notice.lastChild.append(close);
  }
  return notice;
}

function copyable(label, text, number) {
  const area = document.createElement("textarea");
  area.className = "form-control";
  area.id = `unsent-${Date.now()}-${number}`;
  area.readOnly = true;
  area.dir = "auto";
  area.rows = Math.min(6, 1 + text.split("\n").length);
  area.value = text;
  const name = document.createElement("label");
  name.htmlFor = area.id;
  name.textContent = label;
  const copy = button("Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      area.select(); // without permission for the clipboard: the older way
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
  });
  const row = document.createElement("div");
  row.className = "pair";
  row.append(copy);
  return [name, area, row];
}

function button(text) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "btn btn-sm btn-outline";
  made.textContent = text;
  return made;
}

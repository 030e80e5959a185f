/** Adds a button to each password field that shows and hides what was typed. */

for (const field of document.querySelectorAll('input[type="password"]')) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "btn btn-sm btn-quiet show-password";
  const name = field.labels[0].textContent.toLowerCase();
  const update = () => {
    const shown = field.type === "text";
    button.textContent = shown ? "Hide" : "Show";
    button.setAttribute("aria-label", `${button.textContent} the ${name}`);
  };
  button.addEventListener("click", () => {
    field.type = field.type === "text" ? "password" : "text";
    update();
    field.focus();
  });
  // Browsers offer to save only the value of a password field.
  field.form.addEventListener("submit", () => {
    field.type = "password";
  });
  update();
  field.after(button);
  field.parentElement.classList.add("with-show");
}

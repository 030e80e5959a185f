/** Buttons that show what was typed into a password field, and hide it again. */

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
  // What is sent, or kept by the browser, is a password field's value.
  field.form.addEventListener("submit", () => {
    field.type = "password";
  });
  update();
  field.after(button);
  field.parentElement.classList.add("with-show");
}

// Pages of operators: a question before what cannot be undone, and copying.

import { announce } from "./app.js";

/** Asks in a dialog before a form with `data-sure` is sent. */
function ask(form) {
  const button = form.querySelector("button:not([type=button])");
  const text = document.createElement("p");
  text.id = "sure-text";
  text.textContent = form.dataset.sure;
  const back = document.createElement("button");
  back.textContent = document.querySelector("#keys form button").textContent; // "Close", translated
  const go = document.createElement("button");
  go.textContent = button.textContent.trim();
  go.className = "danger";
  go.value = "go";
  const choices = document.createElement("form");
  choices.method = "dialog";
  choices.append(back, " ", go);
  const dialog = document.createElement("dialog");
  dialog.append(text, choices);
  dialog.setAttribute("aria-labelledby", text.id);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue === "go") form.submit();
    else button.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("submit", (event) => {
  if ("sure" in event.target.dataset) {
    event.preventDefault();
    ask(event.target);
  }
});

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // browsers have it over https and on this machine only
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    announce(button.dataset.done);
    button.textContent = button.dataset.done;
  });
}

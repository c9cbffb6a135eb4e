// The list of executions: empty filters do not lengthen the address, and a search continues with older executions.
import { announce, showTimes } from "./app.js";

const form = document.querySelector("[data-filters]");
form.addEventListener("submit", () => {
  const empty = [...form.elements].filter((field) => field.name && field.value === "");
  for (const field of empty) field.disabled = true;
  setTimeout(() => empty.forEach((field) => (field.disabled = false)), 0);
});

const ENOUGH = 40; // rows
const MOST = 200; // pages without a click

/** Adds what the next pages have found, until it is enough or the reader stops. */
async function search() {
  const part = document.querySelector('[data-part="rows"]');
  let stopped = false;
  for (let page = 0; page < MOST && !stopped; page++) {
    const more = part.querySelector("[data-searched]");
    if (!more || part.querySelectorAll("tbody tr").length >= ENOUGH) return;
    const [shown, stop] = [part.querySelector("[data-searching]"), part.querySelector("[data-stop]")];
    shown.hidden = stop.hidden = false;
    more.hidden = true;
    if (!page) announce(shown.textContent);
    stop.addEventListener("click", () => {
      stopped = true;
      shown.hidden = stop.hidden = true;
      more.hidden = false;
    });
    const answer = await fetch(more.href, { headers: { Accept: "text/html" } }).catch(() => null);
    if (stopped) return;
    if (!answer?.ok || answer.redirected) {
      stop.click();
      return;
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector('[data-part="rows"]');
    const rows = part.querySelector("tbody");
    if (rows) {
      rows.append(...fresh.querySelectorAll("tbody tr"));
      part.querySelector(".pager").remove();
      const pager = fresh.querySelector(".pager [rel=next]") && fresh.querySelector(".pager");
      if (pager) part.append(pager);
    } else part.replaceChildren(...fresh.childNodes);
    showTimes(part);
  }
}

search();

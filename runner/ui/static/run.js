// Follows an execution below the form that started it: its lines as they come, and the parts of its own page.

import { address, announce, showTimes } from "./app.js";
import { become } from "./refresh.js";

const MOST = 1000; // lines that stay in the page
let current = null;

function lineOf(given) {
  const line = document.createElement("div");
  line.className = `l${given.s === "stderr" ? " e" : ""}`;
  line.dataset.key = given.k;
  line.dataset.n = given.n;
  for (const [style, text] of given.p ?? []) {
    const part = document.createElement("span");
    part.className = style;
    part.textContent = text;
    line.append(part);
  }
  return line;
}

function addLines(output, lines) {
  const below = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  for (const given of lines) {
    if (given.o && given.o !== "text") continue;
    const fresh = lineOf(given);
    const old = output.querySelector(`[data-key="${CSS.escape(fresh.dataset.key)}"]`);
    if (old) old.replaceWith(fresh);
    else output.append(fresh);
  }
  while (output.childElementCount > MOST) output.firstElementChild.remove();
  output.hidden = output.childElementCount === 0;
  if (below) output.scrollTop = output.scrollHeight;
}

/** Puts state, result and error of the execution's page into a place, where they have changed. */
async function refresh(path, place) {
  const answer = await fetch(path, { headers: { accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = [];
  const summary = page.getElementById("summary");
  if (summary) fresh.push(summary);
  const outcome = page.getElementById("outcome");
  if (outcome) {
    outcome.lastElementChild?.remove(); // the input, which is above
    if (outcome.childElementCount) fresh.push(outcome);
  }
  for (const part of fresh) {
    part.id = `run-${part.id}`;
    for (const each of [part, ...part.querySelectorAll('.card, [class*="span-"]')]) {
      each.className = each.className.replace(/\b(card|grid|span-\d+)(?!\S)/g, "").trim();
    }
  }
  const cancel = page.querySelector('#do form[action$="/cancel"]');
  if (cancel) fresh.push(cancel);
  while (place.childElementCount > fresh.length) place.lastElementChild.remove();
  fresh.forEach((part, at) => {
    const old = place.children[at];
    if (!old) place.append(part);
    else become(old, part);
  });
  showTimes(place);
  const [, at, why] = /^(\$[^:]*): (.*)/s.exec(place.querySelector(".bad-edge .message")?.textContent.trim() ?? "") ?? [];
  if (at) place.dispatchEvent(new CustomEvent("wronginput", { bubbles: true, detail: { at, why } }));
}

export function followRun(place, id) {
  current?.close();
  const path = address(`/executions/${id}`);
  const about = document.createElement("div");
  const output = document.createElement("div");
  output.className = "lines";
  output.tabIndex = 0;
  output.setAttribute("role", "log");
  output.hidden = true;
  place.replaceChildren(about, output);
  about.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) }).catch(() => null);
    later();
  });
  const source = new EventSource(`${path}/events?after=0`);
  current = source;
  const clock = setInterval(() => {
    if (source.readyState === EventSource.CLOSED) clearInterval(clock);
    else if (!document.hidden) later(); // the time of the running phase
  }, 5000);
  let asked = false;
  const later = () => {
    if (asked) return;
    asked = true;
    setTimeout(() => {
      asked = false;
      refresh(path, about);
    }, 100);
  };
  later();
  source.addEventListener("news", (event) => {
    const told = JSON.parse(event.data);
    if (told.lines?.length) addLines(output, told.lines);
    if (told.changed || told.ended) later();
    if (told.ended) {
      source.close();
      setTimeout(() => announce(about.querySelector(".status")?.textContent.trim() ?? ""), 400);
    }
  });
  source.addEventListener("refused", () => {
    source.close();
    later();
  });
}

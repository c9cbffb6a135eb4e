// The list of executions: its rows are asked for again while it is looked at, and changed in place.
import { showTimes } from "./app.js";

const rows = document.querySelector("[data-rows]");
const seconds = Number(rows.dataset.live || 0);
let busy = false;

/** Makes `old` like `fresh`, and touches only what differs: nothing flickers, and the focus stays. */
export function patch(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.nodeType !== fresh.nodeType) {
    old.replaceWith(fresh.cloneNode(true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.nodeName === "TIME" && old.dateTime === fresh.dateTime) return; // it has the text of the reader
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  if (old.nodeName === "TBODY") patchRows(old, fresh);
  else patchChildren(old, fresh);
}

function patchChildren(old, fresh) {
  const [have, want] = [[...old.childNodes], [...fresh.childNodes]];
  want.forEach((node, at) => (at < have.length ? patch(have[at], node) : old.append(node.cloneNode(true))));
  have.slice(want.length).forEach((node) => node.remove());
}

/** Rows have an id: a row that has moved down is not made again. */
function patchRows(old, fresh) {
  const known = new Map([...old.rows].map((row) => [row.id, row]));
  let place = null;
  for (const row of fresh.rows) {
    let mine = known.get(row.id);
    known.delete(row.id);
    if (mine) patch(mine, row);
    else mine = row.cloneNode(true);
    const next = place ? place.nextElementSibling : old.firstElementChild;
    if (mine !== next) old.insertBefore(mine, next);
    place = mine;
  }
  for (const row of known.values()) row.remove();
}

async function refresh() {
  if (busy || document.visibilityState !== "visible") return;
  busy = true;
  try {
    const address = new URL(location.href);
    address.searchParams.set("part", "rows");
    const answer = await fetch(address, { headers: { Accept: "text/html" }, redirect: "error" });
    if (!answer.ok) return;
    const fresh = document.createElement("div");
    fresh.append(...new DOMParser().parseFromString(await answer.text(), "text/html").body.childNodes);
    patchChildren(rows, fresh);
    showTimes(rows);
  } catch {
    // the runner is away, or the session has ended: the next turn, or the next click, tells
  } finally {
    busy = false;
  }
}

if (seconds) {
  setInterval(refresh, seconds * 1000);
  document.addEventListener("visibilitychange", refresh);
}

// Empty filters do not lengthen the address.
document.querySelector("[data-filters]").addEventListener("submit", (event) => {
  for (const field of event.target.elements) if (field.name && field.value === "") field.disabled = true;
  setTimeout(() => [...event.target.elements].forEach((field) => (field.disabled = false)), 0);
});

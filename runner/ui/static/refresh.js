// Pages that stay true while they are looked at: the parts of a page (`data-part`) inside of `data-refresh="SECONDS"`
// are asked for again and changed in place, so that nothing flickers and focus, scroll and open details stay.

import { showTimes } from "./app.js";

/** Makes a node equal to another one, changing only what differs. */
export function become(node, wanted) {
  if (node.nodeType !== wanted.nodeType || node.nodeName !== wanted.nodeName) {
    node.replaceWith(wanted.cloneNode(true));
    return;
  }
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  if (node.isEqualNode(wanted)) return;
  // The script has written the time of the reader; the same time stays as it is.
  if (node.nodeName === "TIME" && node.dateTime === wanted.dateTime) return;
  for (const { name } of [...node.attributes]) {
    if (!wanted.hasAttribute(name) && name !== "open") node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (name !== "open" && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  if (node.nodeName === "TBODY") becomeRows(node, wanted);
  else becomeChildren(node, wanted);
}

/** Rows with an `id` keep their nodes when others come before them: the focus stays where it is. */
function becomeRows(node, wanted) {
  const known = new Map([...node.children].filter((row) => row.id).map((row) => [row.id, row]));
  if (!known.size) return becomeChildren(node, wanted);
  let place = null;
  for (const row of wanted.children) {
    let mine = known.get(row.id);
    if (mine) become(mine, row);
    else mine = row.cloneNode(true);
    known.delete(row.id);
    const next = place ? place.nextElementSibling : node.firstElementChild;
    if (mine !== next) node.insertBefore(mine, next);
    place = mine;
  }
  while (place ? place.nextElementSibling : node.firstElementChild) (place ? place.nextElementSibling : node.firstElementChild).remove();
}

function becomeChildren(node, wanted) {
  const now = [...node.childNodes];
  const then = [...wanted.childNodes];
  then.forEach((each, at) => (at < now.length ? become(now[at], each) : node.append(each.cloneNode(true))));
  now.slice(then.length).forEach((each) => each.remove());
}

let failures = 0;

async function refresh(root) {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.redirected) {
    location.assign(answer.url); // the session has ended
    return;
  }
  if (!answer.ok) throw new Error(String(answer.status));
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of root.querySelectorAll("[data-part]")) {
    const fresh = page.querySelector(`[data-part="${part.dataset.part}"]`);
    if (fresh && !part.contains(getSelected())) become(part, fresh);
  }
  showTimes(root);
}

function getSelected() {
  const selection = getSelection();
  return selection && !selection.isCollapsed ? selection.anchorNode : null;
}

function offline(shown) {
  const note = document.getElementById("offline");
  if (note) note.hidden = !shown;
}

async function loop(root) {
  const seconds = Number(root.dataset.refresh);
  for (;;) {
    await new Promise((done) => setTimeout(done, seconds * 1000 * Math.min(2 ** failures, 8)));
    if (document.visibilityState !== "visible") continue;
    try {
      await refresh(root);
      failures = 0;
    } catch {
      failures += 1;
    }
    offline(failures > 0);
  }
}

for (const root of document.querySelectorAll("[data-refresh]")) loop(root);

// On every page: times of the reader, keys of the keyboard, colours without a reload. Nothing of it is needed to read.

const language = document.documentElement.lang || "en";
const region = navigator.languages.find((each) => each.split("-")[0] === language) ?? language; // en-GB has no AM and PM
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const absolute = new Intl.DateTimeFormat(region, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(region, { dateStyle: "medium", timeStyle: "short" });
const UNITS = [["second", 60], ["minute", 60], ["hour", 24], ["day", 7]];

/** Returns a time as people say it: "5 minutes ago", after a week the date. */
function spoken(date) {
  let value = (date - Date.now()) / 1000;
  for (const [unit, size] of UNITS) {
    if (Math.abs(value) < size) return relative.format(Math.trunc(value), unit);
    value /= size;
  }
  return day.format(date);
}

/** Writes the times below a node in the zone of the reader. Call it for nodes that a script adds. */
export function showTimes(root = document) {
  for (const node of root.querySelectorAll("time[datetime]")) {
    const date = new Date(node.dateTime);
    const whole = absolute.format(date);
    const text = "relative" in node.dataset ? spoken(date) : whole;
    if (node.textContent !== text) node.textContent = text;
    if (node.title !== whole) node.title = whole;
  }
}

/** Says something to readers who cannot see the page. */
export function announce(text) {
  const live = document.getElementById("live");
  if (live) live.textContent = text;
}

/** Returns the address of a page of the dashboard. */
export function address(path) {
  return document.body.dataset.base + path;
}

/** Posts to a path of the dashboard, as its forms do. */
export function post(path, body) {
  return fetch(address(path), { method: "POST", body, headers: { "X-CSRF-Token": document.body.dataset.csrf } });
}

function typing(node) {
  return node.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(node.tagName);
}

let waiting = 0; // until when the key after `g` goes to a page

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const keys = document.getElementById("keys");
  if (keys?.open) return;
  if (Date.now() < waiting) {
    waiting = 0;
    const link = [...document.querySelectorAll("[data-go]")].find((each) => each.dataset.go === event.key);
    if (link) {
      event.preventDefault();
      link.click();
    }
  } else if (event.key === "g") {
    waiting = Date.now() + 1500;
  } else if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select?.();
    }
  } else if (event.key === "?" && keys) {
    event.preventDefault();
    keys.showModal();
  }
}

/** Asks before a form does what cannot be undone; choices marked so are applied at once. */
function chosen(event) {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
}

function confirmed(event) {
  const question = event.submitter?.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
}

function start() {
  document.addEventListener("change", chosen);
  document.addEventListener("submit", confirmed);
  document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  showTimes();
  setInterval(showTimes, 10000);
  document.addEventListener("keydown", pressed);
  const help = document.querySelector("[data-keys]");
  if (help) {
    help.hidden = false;
    help.addEventListener("click", () => document.getElementById("keys").showModal());
  }
  const link = document.querySelector("form[data-link]");
  // A preview of the link is not visible, and must not use it up.
  if (link && document.visibilityState === "visible" && document.hasFocus()) link.requestSubmit();
}

start();

// The page of a module: form and JSON in step, runs followed below, builds line by line. Without it the forms work too.

import { post, showTimes } from "./app.js";
import { indent } from "./indent.js";

const WAIT = 300; // milliseconds of silence after which the other side follows

function later(work) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, WAIT);
  };
}

class Runner {
  constructor(root) {
    this.root = root;
    this.form = root.querySelector("[data-form]") ?? document.createElement("form"); // without a schema there is no form
    this.json = root.querySelector("[data-json]");
    this.raw = this.json.elements.raw;
    this.asked = 0;
    this.changes = 0; // of the form
    this.uploads = Promise.resolve(); // a run waits for its files
    for (const each of root.querySelectorAll("[data-without-script]")) each.hidden = true;
    const toJson = later(() => this.turn("to-json"));
    const toForm = later(() => this.turn("to-form"));
    this.form.addEventListener("input", (event) => this.typed(event, toJson));
    this.form.addEventListener("change", (event) => this.changed(event));
    if (this.form.isConnected) this.raw.addEventListener("input", toForm);
    this.raw.addEventListener("keydown", indent);
    this.form.addEventListener("submit", (event) => this.submitted(event, this.form));
    this.json.addEventListener("submit", (event) => this.submitted(event, this.json));
    root.addEventListener("wronginput", (event) => this.mark(event.detail));
    showBranches(this.form);
  }

  /** Shows at its field what the module itself found wrong. */
  mark({ at, why }) {
    let path = at;
    let field = null;
    while (path && !(field = this.form.querySelector(`[data-path="${CSS.escape(path)}"]`))) {
      path = path.slice(0, Math.max(path.lastIndexOf("."), path.lastIndexOf("[")));
    }
    if (!field || field.querySelector(".problem.found")) return;
    field.classList.add("wrong");
    const line = document.createElement("p");
    line.className = "problem found";
    line.textContent = path === at ? why : `${at}: ${why}`;
    (field.querySelector(":scope > .inside") ?? field).append(line);
  }

  typed(event, toJson) {
    this.changes += 1;
    const group = event.target.closest("fieldset.group");
    if (group && !event.target.matches("[data-use]")) {
      for (let each = group; each; each = each.parentElement.closest("fieldset.group")) {
        const tick = each.querySelector(":scope > .inside > .tick > [data-use]");
        if (tick) tick.checked = true;
      }
    }
    showBranches(this.form);
    const marked = event.target.closest(".wrong");
    marked?.classList.remove("wrong");
    marked?.querySelector(".problem.found")?.remove();
    if (event.target.type !== "file") toJson();
  }

  changed({ target }) {
    if (target.type !== "file" || !target.files.length) return;
    this.uploads = Promise.all([this.uploads, this.upload(target)]);
  }

  async upload(field) {
    const [file] = field.files;
    const line = document.createElement("p");
    line.className = "stored muted";
    line.textContent = file.name;
    field.after(line);
    field.setAttribute("aria-busy", "true");
    const query = new URLSearchParams({ name: file.name });
    try {
      const answer = await post(`${this.root.dataset.files}?${query}`, file);
      const text = await answer.text();
      if (!answer.ok) throw new Error(text);
      const keep = document.createElement("input");
      keep.type = "hidden";
      keep.name = field.name.replace(/^file/, "keep");
      keep.value = text;
      field.replaceWith(keep);
      line.remove();
      await this.turn("to-json", true);
    } catch (problem) {
      field.removeAttribute("aria-busy");
      line.className = "problem";
      line.textContent = problem.message;
    }
  }

  async ask(form, what) {
    const data = new FormData(form);
    for (const [name, value] of [...data]) if (value instanceof File) data.delete(name);
    data.set("do", what);
    const answer = await fetch(this.root.dataset.run, { method: "POST", body: data, headers: { accept: "application/json" } });
    if (!(answer.headers.get("content-type") ?? "").startsWith("application/json")) throw new Error(await answer.text());
    return [answer.status, await answer.json()];
  }

  /** Lets the other side follow: `to-json` after the form, `to-form` after the JSON. */
  async turn(what, redraw = false) {
    const number = ++this.asked;
    const changes = this.changes;
    let told;
    try {
      [, told] = await this.ask(what === "to-form" ? this.json : this.form, what);
    } catch {
      return; // the next change asks again
    }
    if (number !== this.asked) return;
    if (redraw && changes !== this.changes) return this.turn(what, redraw); // or what was typed meanwhile would be lost
    if (what === "to-form") {
      this.showProblem(told.problem);
      if (!told.problem && told.fits) this.draw(told.form);
    } else {
      this.raw.value = told.json;
      this.showProblem("");
      if (redraw) this.draw(told.form);
    }
  }

  draw(html) {
    const place = this.form.querySelector("[data-fields]");
    const held = document.activeElement?.name;
    if (!place) return;
    place.replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
    showBranches(this.form);
    if (held) place.querySelector(`[name="${CSS.escape(held)}"]`)?.focus();
  }

  showProblem(text) {
    const line = this.json.querySelector(".problem");
    line.hidden = !text;
    line.querySelector("[data-problem]").textContent = text;
    this.raw.closest(".field").classList.toggle("wrong", Boolean(text));
  }

  async submitted(event, form) {
    const what = event.submitter?.value ?? (form === this.form ? "run" : "run-json");
    event.preventDefault();
    if (event.submitter) event.submitter.disabled = true;
    await this.uploads;
    try {
      const [status, told] = await this.ask(form, what);
      if (status === 202) {
        this.showFailure(null);
        await this.follow(told);
      } else {
        if (form === this.form || (told.fits && what === "run-json")) this.draw(told.form);
        if (form === this.form) this.raw.value = told.json;
        this.showProblem(told.problem);
        this.showFailure(told.failure);
        const wrong = this.form.querySelector("[aria-invalid]");
        if (what.startsWith("run")) wrong?.focus();
        if (what.startsWith("add:")) this.focusAdded(what.slice(4));
      }
    } catch (problem) {
      this.showFailure({ message: problem.message });
    } finally {
      if (event.submitter) {
        event.submitter.disabled = false;
        if (document.activeElement === document.body) event.submitter.focus({ preventScroll: true });
      }
    }
  }

  focusAdded(at) {
    const lists = [...this.form.querySelectorAll("button.add")].find((each) => each.value === `add:${at}`);
    lists?.closest("fieldset").querySelector(".items > li:last-child :is(input:not([type=hidden]), select, textarea)")?.focus();
  }

  showFailure(failure) {
    const place = this.root.querySelector("[data-failure]");
    place.replaceChildren();
    if (!failure) return;
    const note = document.createElement("div");
    note.className = "note bad";
    note.setAttribute("role", "alert");
    const text = document.createElement("p");
    text.textContent = failure.message;
    note.append(text);
    place.append(note);
  }

  async follow(told) {
    const section = this.root.querySelector("[data-result]");
    section.hidden = false;
    section.querySelector("[data-link]").href = told.url;
    const place = section.querySelector("[data-live]");
    section.scrollIntoView({ block: "nearest" });
    const { followRun } = await import("./run.js");
    followRun(place, told.id);
  }
}

/** Shows the fields of the alternative that is chosen. */
function showBranches(form) {
  for (const choice of form.querySelectorAll("[data-pick]")) {
    const chosen = choice.querySelector("input:checked")?.value ?? "";
    for (const each of choice.parentElement.querySelectorAll(":scope > .branch")) each.hidden = each.dataset.branch !== chosen;
  }
}

/** Changes the page in place to what it is now. */
async function reread() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const { become } = await import("./refresh.js");
  become(document.getElementById("content"), page.getElementById("content"));
  showTimes();
}

/** Adds the lines of a build as they come; the page itself shows the end. */
function followBuild(log) {
  const source = new EventSource(log.dataset.build);
  source.addEventListener("lines", (event) => {
    const told = JSON.parse(event.data);
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append((told.dropped ? `… ${told.dropped}\n` : "") + told.lines.map((line) => `${line}\n`).join(""));
    if (below) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("ended", () => {
    source.close();
    reread();
  });
}

for (const root of document.querySelectorAll("[data-run]")) new Runner(root);
for (const log of document.querySelectorAll("[data-build]")) followBuild(log);
for (const log of document.querySelectorAll("pre.log")) log.scrollTop = log.scrollHeight;


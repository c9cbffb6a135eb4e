// The page of an execution: follows it, and shows any part of a long output without having all of it.
import { address, announce, showTimes } from "./app.js";
import { become } from "./refresh.js";

const run = document.getElementById("run");
const id = run.dataset.execution;
const path = address(`/executions/${id}`);
const MOST = 3000; // lines in the page
const STEP = 500; // lines in one request

const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`);

class Output {
  constructor(root) {
    this.root = root;
    this.box = root.querySelector("[data-lines]");
    this.body = root.querySelector("[data-body]");
    this.before = root.querySelector("[data-before]");
    this.after = root.querySelector("[data-after]");
    this.nothing = root.querySelector("[data-nothing]");
    this.followSwitch = root.querySelector("[data-follow-switch]");
    this.found = root.querySelector("[data-found]");
    this.earlier = root.dataset.earlier === "1";
    this.later = root.dataset.later === "1";
    this.live = "follow" in run.dataset;
    this.following = this.live && !this.later;
    this.stream = "";
    this.keys = [];
    this.match = -1;
    this.busy = false;
    this.bind();
    if (this.live) this.followSwitch.hidden = false;
    this.showFollowing();
    if (this.following || (this.earlier && !location.search)) this.toEnd();
    const wanted = location.hash.startsWith("#L") && document.getElementById(location.hash.slice(1));
    if (wanted) this.point(wanted);
    if (this.earlier && !this.later && !location.search) this.load({ before: this.edge(true) }, "before");
    if (this.later && this.box.scrollHeight <= this.box.clientHeight) this.load({ after: this.edge(false) }, "after");
  }

  text(name, values = {}) {
    return Object.entries(values).reduce((text, [key, value]) => text.replace(`{${key}}`, value), this.root.dataset[name]);
  }

  bind() {
    this.box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.before.firstElementChild.addEventListener("click", (event) => {
      event.preventDefault();
      this.load({ before: this.edge(true) }, "before");
    });
    this.after.firstElementChild.addEventListener("click", (event) => {
      event.preventDefault();
      this.load({ after: this.edge(false) }, "after");
    });
    this.followSwitch.addEventListener("click", () => this.follow(!this.following));
    const wrap = this.root.querySelector("[data-wrap]");
    wrap.hidden = false;
    const wrapped = (on) => {
      this.box.classList.toggle("long", !on);
      wrap.setAttribute("aria-pressed", on);
    };
    try {
      wrapped(localStorage.getItem("operato.wrap") !== "off");
    } catch {
      wrapped(true);
    }
    wrap.addEventListener("click", () => {
      const on = wrap.getAttribute("aria-pressed") !== "true";
      wrapped(on);
      try {
        localStorage.setItem("operato.wrap", on ? "on" : "off");
      } catch {
        // private mode: it holds for this page
      }
    });
    const stream = this.root.querySelector("[data-stream]");
    stream.hidden = false;
    stream.addEventListener("change", async () => {
      this.stream = stream.value;
      await this.load({ last: true }, "all");
      this.toEnd();
      if (this.sought) this.search(this.sought);
    });
    const mistake = this.root.querySelector("[data-mistake]");
    mistake?.addEventListener("click", (event) => {
      event.preventDefault();
      this.go(mistake.dataset.mistake);
    });
    const form = this.root.querySelector("[data-find]");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = form.elements.search.value.trim();
      if (text && text === this.sought) this.step(1);
      else this.search(text);
    });
    form.elements.search.addEventListener("input", () => {
      if (!form.elements.search.value) this.search("");
    });
    this.buttons = [form.querySelector("[data-previous]"), form.querySelector("[data-following]")];
    this.buttons.forEach((button, at) => button.addEventListener("click", () => this.step(at ? 1 : -1)));
    if (form.elements.search.value) this.search(form.elements.search.value.trim());
  }

  edge(first) {
    const line = first ? this.body.firstElementChild : this.body.lastElementChild;
    return line ? line.id.slice(1) : "";
  }

  line(given) {
    const line = document.createElement("div");
    line.className = `l${given.s === "stderr" ? " e" : ""}${given.o === "text" ? "" : ` ${given.o}`}`;
    line.id = `L${given.k}`;
    line.dataset.n = given.n;
    if (given.o === "gap") line.textContent = this.text("textGap", { size: size(given.c) });
    else if (given.o === "attempt") line.textContent = this.text("textAttempt", { n: given.a });
    else {
      for (const [style, text] of given.p) {
        if (style) {
          const part = document.createElement("span");
          part.className = style;
          part.textContent = text;
          line.append(part);
        } else line.append(text);
      }
      if (given.c) {
        const cut = document.createElement("i");
        cut.textContent = this.text("textCut", { n: given.c });
        line.append(cut);
      }
    }
    return line;
  }

  /** Loads lines and puts them before, after or in place of those that are there. */
  async load(query, where) {
    if (this.busy) return false;
    this.busy = true;
    try {
      const answer = await fetch(`${path}/lines?${new URLSearchParams({ limit: STEP, stream: this.stream, ...query })}`);
      if (!answer.ok || !answer.headers.get("content-type").startsWith("application/json")) throw new Error(answer.status);
      const found = await answer.json();
      const height = this.box.scrollHeight;
      const top = this.box.scrollTop;
      const lines = found.lines.filter((line) => where === "all" || !document.getElementById(`L${line.k}`)).map((line) => this.line(line));
      if (where === "before") {
        this.body.prepend(...lines);
        this.earlier = found.before;
        this.box.scrollTop = top + this.box.scrollHeight - height;
        this.trim(false);
      } else if (where === "after") {
        this.body.append(...lines);
        this.later = found.after;
        this.trim(true);
      } else {
        this.body.replaceChildren(...lines);
        this.earlier = found.before;
        this.later = found.after;
      }
      this.total(found.total);
      this.edges();
      this.mark();
      return true;
    } catch {
      this.say(this.text("textFailed"));
      return false;
    } finally {
      this.busy = false;
    }
  }

  /** Keeps the page small, whatever the length of the output: what is far away is loaded again when it is wanted. */
  trim(first) {
    const more = this.body.childElementCount - MOST;
    if (more <= 0) return;
    const top = this.box.scrollTop;
    const height = this.box.scrollHeight;
    for (let i = 0; i < more; i++) (first ? this.body.firstElementChild : this.body.lastElementChild).remove();
    if (first) {
      this.earlier = true;
      this.box.scrollTop = top - (height - this.box.scrollHeight);
    } else this.later = true;
  }

  edges() {
    this.before.hidden = !this.earlier;
    this.after.hidden = !this.later;
    this.nothing.hidden = this.body.childElementCount > 0;
  }

  total(count) {
    if (count) this.root.querySelector("[data-total]").textContent = this.text("textLines", { n: count.toLocaleString() });
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
  }

  scrolled() {
    if (this.following && !this.atEnd() && Date.now() > (this.written || 0) + 200) this.follow(false);
    if (this.box.scrollTop < 200 && this.earlier && this.body.childElementCount) this.load({ before: this.edge(true) }, "before");
    else if (this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 200 && this.later) this.load({ after: this.edge(false) }, "after");
  }

  async follow(on) {
    this.following = on;
    this.showFollowing();
    if (on) {
      if (this.later) await this.load({ last: true }, "all");
      this.toEnd();
    }
  }

  showFollowing() {
    this.followSwitch.setAttribute("aria-pressed", this.following);
  }

  /** Adds lines that were printed, or replaces those that have grown. */
  add(lines, skipped) {
    const mine = this.stream ? lines.filter((line) => line.s === this.stream) : lines;
    const last = lines.at(-1);
    this.total(Math.max(last.n, this.most || 0));
    this.most = Math.max(last.n, this.most || 0);
    if (this.later) return;
    this.written = Date.now();
    if (skipped) {
      this.body.replaceChildren();
      this.earlier = true;
    }
    for (const given of mine) {
      const fresh = this.line(given);
      const old = document.getElementById(fresh.id);
      if (old) old.replaceWith(fresh);
      else this.body.append(fresh);
    }
    if (this.following) this.trim(true);
    else if (this.body.childElementCount > 2 * MOST) {
      for (let i = this.body.childElementCount; i > MOST; i--) this.body.lastElementChild.remove();
      this.later = true;
    }
    this.edges();
    this.mark();
    if (this.following) this.toEnd();
  }

  async search(text) {
    this.sought = text;
    this.keys = [];
    this.match = -1;
    this.buttons.forEach((button) => (button.hidden = true));
    this.found.textContent = "";
    this.mark();
    if (!text) return;
    const answer = await fetch(`${path}/search?${new URLSearchParams({ q: text, stream: this.stream })}`).catch(() => null);
    const found = answer && answer.headers.get("content-type").startsWith("application/json") ? await answer.json() : null;
    if (text !== this.sought) return;
    if (!found || found.problem) {
      this.found.textContent = found ? found.problem : this.text("textFailed");
      return;
    }
    this.keys = found.keys;
    this.count = found.count;
    if (!found.count) this.found.textContent = this.text("textNone");
    else {
      this.buttons.forEach((button) => (button.hidden = false));
      // Begins at what is looked at.
      const top = this.box.getBoundingClientRect().top;
      const seen = [...this.body.children].find((line) => line.getBoundingClientRect().bottom > top);
      const at = seen ? this.keys.findIndex((key) => after(key, seen.id.slice(1)) >= 0) : 0;
      this.match = (at < 0 ? 0 : at) - 1;
      this.step(1);
    }
  }

  step(by) {
    if (!this.keys.length) return;
    this.match = (this.match + by + this.keys.length) % this.keys.length;
    this.found.textContent = this.text("textFound", { i: (this.match + 1).toLocaleString(), n: this.count.toLocaleString() });
    this.go(this.keys[this.match]);
  }

  async go(key) {
    this.follow(false);
    let line = document.getElementById(`L${key}`);
    if (!line && (await this.load({ around: key }, "all"))) line = document.getElementById(`L${key}`);
    if (line) this.point(line);
  }

  point(line) {
    this.body.querySelector(".here")?.classList.remove("here");
    line.classList.add("here");
    this.following = false;
    this.showFollowing();
    this.box.scrollTop += line.getBoundingClientRect().top - this.box.getBoundingClientRect().top - this.box.clientHeight / 3;
    line.scrollIntoView({ block: "nearest" }); // the box may be higher than the window
  }

  /** Marks the searched text in the lines of the page, without a change of their nodes. */
  mark() {
    if (!globalThis.CSS?.highlights || !globalThis.Highlight) return;
    CSS.highlights.delete("sought");
    const wanted = (this.sought || "").toLowerCase();
    if (!wanted) return;
    const ranges = [];
    for (const line of this.body.children) {
      const walker = document.createTreeWalker(line, NodeFilter.SHOW_TEXT);
      const nodes = [];
      while (walker.nextNode()) nodes.push(walker.currentNode);
      const whole = nodes.map((node) => node.data).join("").toLowerCase();
      for (let at = whole.indexOf(wanted); at >= 0 && ranges.length < 2000; at = whole.indexOf(wanted, at + wanted.length)) {
        const range = new Range();
        let passed = 0;
        for (const node of nodes) {
          const end = passed + node.length;
          if (at >= passed && at < end) range.setStart(node, at - passed);
          if (at + wanted.length > passed && at + wanted.length <= end) range.setEnd(node, at + wanted.length - passed);
          passed = end;
        }
        ranges.push(range);
      }
    }
    CSS.highlights.set("sought", new Highlight(...ranges));
  }

  say(text) {
    const news = this.root.querySelector("[data-news]");
    news.textContent = text;
    news.hidden = !text;
  }
}

/** Compares two keys: which line comes later. */
function after(one, other) {
  const [a, b] = [one.split("."), other.split(".")].map(([seq, index]) => [Number(seq), Number(index)]);
  return a[0] - b[0] || a[1] - b[1];
}

const output = new Output(document.getElementById("output"));
let asked = false;

/** Asks for the page again, and puts the parts of it that have changed in place of the old ones. */
async function refresh() {
  if (asked) return;
  asked = true;
  await new Promise((done) => setTimeout(done, 300)); // several changes come together
  asked = false;
  const answer = await fetch(path, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer || answer.status >= 500) {
    output.say(output.text("textLost"));
    setTimeout(refresh, 2000);
    return;
  }
  output.say("");
  if (answer.redirected || answer.status === 401) {
    output.say(output.text("textOut"));
    return;
  }
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const old = document.getElementById(part.id);
    if (!old) {
      if (part.id === "attempts") document.getElementById("output").before(part);
      else run.append(part);
    } else if (part.id !== "again") become(old, part);
  }
  const mistake = fresh.querySelector("[data-mistake]");
  if (mistake && !output.root.querySelector("[data-mistake]")) {
    output.followSwitch.before(mistake);
    mistake.addEventListener("click", (event) => {
      event.preventDefault();
      output.go(mistake.dataset.mistake);
    });
  }
  const state = fresh.getElementById("run");
  if ("follow" in state.dataset && !("follow" in run.dataset)) {
    run.dataset.follow = "";
    delete run.dataset.later;
    output.live = output.following = true;
    output.followSwitch.hidden = false;
    output.showFollowing();
    listen();
  }
  showTimes();
  forms();
  pictures();
}

let next = Number(run.dataset.next);
let source = null;

function progress(given) {
  const place = document.querySelector("[data-progress]");
  if (!place) return;
  place.hidden = false;
  const bar = place.querySelector("progress");
  if (given.total) bar.max = given.total;
  if (given.done === null || !given.total) bar.removeAttribute("value");
  else bar.value = given.done;
  const [numbers, text] = place.querySelectorAll("span");
  numbers.textContent = given.done === null ? "" : given.done.toLocaleString() + (given.total ? ` / ${given.total.toLocaleString()}` : "");
  text.textContent = given.text;
}

function listen() {
  source = new EventSource(`${path}/events?after=${next}`);
  source.addEventListener("open", () => output.say(""));
  source.addEventListener("news", (event) => {
    next = Number(event.lastEventId) + 1;
    const told = JSON.parse(event.data);
    if (told.lines?.length) output.add(told.lines, told.skipped);
    if (told.progress) progress(told.progress);
    if (told.ended) {
      source.close();
      source = null;
      output.live = false;
      output.followSwitch.hidden = true;
      announce(output.text("textEnded"));
    }
    if (told.changed || told.ended) refresh();
  });
  source.addEventListener("refused", () => {
    source.close();
    source = null;
    refresh();
  });
  source.addEventListener("error", () => {
    if (source === null) return;
    if (source.readyState === EventSource.CLOSED) {
      // The server has answered with something else: it has ended, or the session has, or it starts again.
      source = null;
      setTimeout(async () => {
        await refresh();
        if ("follow" in run.dataset && output.live && !source) listen();
      }, 2000);
    }
    output.say(output.text("textLost"));
  });
}

/** A form is sent once; JSON is checked while it is written. */
function forms() {
  for (const form of document.querySelectorAll("form[data-once]")) {
    if (form.dataset.once === "bound") continue;
    form.dataset.once = "bound";
    form.addEventListener("submit", () => setTimeout(() => form.querySelectorAll("button").forEach((button) => (button.disabled = true)), 0));
  }
  const json = document.querySelector("[data-json]");
  if (json && !json.dataset.bound) {
    json.dataset.bound = "1";
    const problem = document.querySelector("[data-json-problem]");
    json.addEventListener("input", () => {
      let wrong = "";
      try {
        JSON.parse(json.value);
      } catch (reason) {
        wrong = `${json.dataset.wrong}: ${reason.message}`;
      }
      problem.textContent = wrong;
      problem.hidden = !wrong;
      json.setAttribute("aria-invalid", Boolean(wrong));
    });
  }
}

/** A file whose content is no picture is not shown as one. */
function pictures() {
  for (const image of document.querySelectorAll("[data-picture] img")) {
    const hide = () => (image.parentElement.hidden = true);
    if (image.complete && !image.naturalWidth) hide();
    image.addEventListener("error", hide);
  }
}

forms();
pictures();
if ("follow" in run.dataset) listen();
// The time of the running phase, and the state of one that waits for its time.
setInterval(() => {
  if (!document.hidden && (source || "later" in run.dataset)) refresh();
}, 5000);

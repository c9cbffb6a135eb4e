// The editor: numbers of lines, Tab, and a check while one types. Without it the buttons of the form check and publish.

import { indent } from "./indent.js";

const WAIT = 700;

const editor = document.querySelector("[data-editor]");
const place = document.querySelector("[data-checks]");
let timer;
let asked = 0;

function number(area) {
  const gutter = area.parentElement.querySelector("[data-gutter]");
  const count = area.value.split("\n").length;
  if (gutter.childElementCount === count) return;
  gutter.replaceChildren(
    ...Array.from({ length: count }, (_, at) => {
      const line = document.createElement("span");
      line.textContent = at + 1;
      return line;
    }),
  );
}

function goTo(file, line) {
  const area = editor.querySelector(`textarea[data-file="${CSS.escape(file)}"]`);
  if (!area) return;
  const lines = area.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  area.scrollTop = Math.max(0, (line - 4) * 20);
  area.closest("section").scrollIntoView({ block: "nearest" });
}

function mark(mistakes) {
  for (const line of editor.querySelectorAll("[data-gutter] .wrong")) line.classList.remove("wrong");
  for (const each of mistakes) {
    const area = each.file && editor.querySelector(`textarea[data-file="${CSS.escape(each.file)}"]`);
    const gutter = area?.parentElement.querySelector("[data-gutter]");
    gutter?.children[(each.line ?? 1) - 1]?.classList.add("wrong");
  }
}

function show(told) {
  mark(told.mistakes);
  place.hidden = false;
  place.classList.toggle("good", !told.mistakes.length);
  if (!told.mistakes.length) {
    place.textContent = place.dataset.good;
    return;
  }
  const list = document.createElement("ul");
  list.className = "mistakes";
  for (const each of told.mistakes) {
    const item = document.createElement("li");
    if (each.file) {
      const link = document.createElement("a");
      link.href = `#${each.file}`;
      link.dataset.goto = each.file;
      link.dataset.line = each.line ?? 1;
      link.textContent = each.file + (each.line ? `:${each.line}` : "");
      item.append(link, " ");
    }
    item.append(each.text);
    list.append(item);
  }
  place.replaceChildren(list);
}

async function check() {
  const turn = ++asked;
  const data = new FormData(editor);
  data.set("do", "check");
  try {
    const answer = await fetch(editor.action, { method: "POST", body: data, headers: { accept: "application/json" } });
    const told = await answer.json();
    if (turn === asked) show(told);
  } catch {
    // the next change checks again
  }
}

if (editor) {
  for (const area of editor.querySelectorAll("textarea[data-file]")) {
    number(area);
    area.addEventListener("input", () => {
      number(area);
      clearTimeout(timer);
      timer = setTimeout(check, WAIT);
    });
    area.addEventListener("scroll", () => {
      area.parentElement.querySelector("[data-gutter]").scrollTop = area.scrollTop;
    });
    area.addEventListener("keydown", indent);
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-goto]");
    if (!link) return;
    event.preventDefault();
    goTo(link.dataset.goto, Number(link.dataset.line));
  });
}

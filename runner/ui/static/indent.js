/** Lets Tab indent in a text of several lines; Escape and then Tab leaves it. */
export function indent(event) {
  const area = event.target;
  if (event.key === "Escape") {
    area.dataset.leaving = "1";
  } else if (event.key === "Tab" && !event.shiftKey && !area.dataset.leaving) {
    event.preventDefault();
    area.setRangeText(area.dataset.file?.endsWith(".py") ? "    " : "  ", area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
  } else if (event.key !== "Tab" && event.key !== "Shift") {
    delete area.dataset.leaving;
  }
}

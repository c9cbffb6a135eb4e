// The list of executions: empty filters do not lengthen the address.

const form = document.querySelector("[data-filters]");
form.addEventListener("submit", () => {
  const empty = [...form.elements].filter((field) => field.name && field.value === "");
  for (const field of empty) field.disabled = true;
  setTimeout(() => empty.forEach((field) => (field.disabled = false)), 0);
});

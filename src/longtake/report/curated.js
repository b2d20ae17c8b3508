// Filters that live in the address (#category=goal&reason=blind&text=cup), and j / k from row to row. Reads data attributes, writes `hidden`.
(() => {
  "use strict";
  const cards = [...document.querySelectorAll("article.row")];
  const fields = [...document.querySelectorAll("#filters [name]")];
  const status = document.getElementById("shown");
  const bar = document.getElementById("filters");
  const texts = new Map();

  function textOf(card) {
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return texts.get(card);
  }

  function matches(card) {
    return fields.every((field) => {
      if (!field.value) return true;
      if (field.name === "text") return textOf(card).includes(field.value.toLowerCase().trim());
      return card.dataset[field.name] === field.value;
    });
  }

  // The bar covers what is behind it, except on a phone, where it does not stick: cards are scrolled to below it.
  function measureBar() {
    const sticks = getComputedStyle(bar).position === "sticky";
    document.documentElement.style.setProperty("--bar", (sticks ? bar.offsetHeight : 0) + "px");
  }

  function apply(problem) {
    let count = 0;
    for (const card of cards) {
      card.hidden = !matches(card);
      if (!card.hidden) count += 1;
    }
    status.textContent = `${count} of ${cards.length} shown` + (problem ? `; ${problem}` : "");
    measureBar();
  }

  function toAddress() {
    const given = new URLSearchParams();
    for (const field of fields) if (field.value) given.set(field.name, field.value);
    history.replaceState(null, "", "#" + given.toString());
    apply("");
  }

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const unknown = [];
    for (const field of fields) {
      field.value = given.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.value = "";
      if (given.get(field.name) && !field.value) unknown.push(`nothing has ${field.name} = ${given.get(field.name)}`);
    }
    apply(unknown.join(", "));
    const row = given.get("row") && document.getElementById("row-" + given.get("row"));
    if (row) goTo(row);
    else if ([...given.keys()].some((name) => name !== "row")) bar.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function goTo(card) {
    card.hidden = false;
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function step(by) {
    const seen = cards.filter((card) => !card.hidden);
    if (!seen.length) return;
    const edge = bar.getBoundingClientRect().bottom;
    const focused = document.activeElement.closest("article.row");
    let at = seen.indexOf(focused);
    if (at < 0) {
      // From the card at the top of the window: j goes to the first that begins below the filters, k to the one before it.
      at = seen.findIndex((card) => card.getBoundingClientRect().top >= edge - 1);
      at = at < 0 ? seen.length : at;
      if (by > 0) at -= 1;
    }
    goTo(seen[Math.min(Math.max(at + by, 0), seen.length - 1)]);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing) typing.blur();
    if (typing) return;
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "/") document.querySelector("#filters [name=text]").focus();
    else return;
    event.preventDefault();
  });
  for (const field of fields) field.addEventListener("input", toAddress);
  document.getElementById("reset").addEventListener("click", () => {
    for (const field of fields) field.value = "";
    toAddress();
  });
  window.addEventListener("hashchange", fromAddress);
  window.addEventListener("resize", measureBar);
  for (const part of document.querySelectorAll("[data-scripted]")) part.hidden = false;
  fromAddress();
})();

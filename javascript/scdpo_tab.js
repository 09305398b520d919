// The tab "Safety LoRA": keys for labelling, and a tick for the pane that is shown.
"use strict";

(() => {
  const KEYS = { 1: "left", 2: "right", 3: "skip", s: "skip", u: "undo", Backspace: "undo" };

  const shown = (element) => element !== null && element.parentElement.getClientRects().length > 0;

  // gradio gives the id to the button itself or to a box around it.
  const click = (element) => (element.matches("button") ? element : element.querySelector("button"))?.click();

  const writing = (element) =>
    element instanceof Element && element.closest("input:not([type=checkbox]), textarea, select, [contenteditable]") !== null;

  document.addEventListener("keydown", (event) => {
    const name = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
    const button = document.getElementById(`scdpo_pref_${name}`);
    if (!shown(button)) return;
    event.preventDefault();
    click(button);
  });

  setInterval(() => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll(".scdpo-tick")) if (shown(element)) click(element);
  }, 2000);
})();

"use strict";
// Colours are those of the style sheet, read when something is drawn; what was drawn is drawn again when they change.

const theme = {
  drawings: [],
  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  },
  dark() {
    return getComputedStyle(document.documentElement).colorScheme === "dark";
  },
  narrow() {
    return window.innerWidth <= 720;
  },
  // Tints for groups with several layers: told apart in light and dark, and by those who see red and green alike.
  tints() {
    return this.dark()
      ? ["#78a9ec", "#e0a458", "#7fc8a9", "#d78fb9", "#c9c36b", "#9d94e8", "#6fc3d8", "#e58a78"]
      : ["#2f66b0", "#c2761b", "#2f8a68", "#a8487f", "#7d7716", "#6355c0", "#1f819a", "#b9472f"];
  },
  redraw() {
    for (const draw of this.drawings) draw();
  },
  begin() {
    const button = document.getElementById("theme");
    const show = () => {
      button.textContent = this.dark() ? "Light" : "Dark";
      button.setAttribute("aria-pressed", String(this.dark()));
    };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = this.dark() ? "light" : "dark";
      show();
      this.redraw();
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      show();
      this.redraw();
    });
    show();
  },
};

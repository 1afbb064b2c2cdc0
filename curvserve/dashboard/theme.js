// Light or dark: as the system says, until somebody chooses. Runs before the page is painted.
"use strict";
{
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("curvserve.theme");
  const root = document.documentElement;

  function show() {
    root.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
    const button = document.getElementById("theme");
    if (button) button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    if (button) button.setAttribute("aria-label", `Switch to ${button.textContent.toLowerCase()} colours`);
    dispatchEvent(new Event("themechange"));
  }

  system.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      localStorage.setItem("curvserve.theme", root.dataset.theme === "dark" ? "light" : "dark");
      show();
    });
  });
  show();
}

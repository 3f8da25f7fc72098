// The theme, then the parts in order.

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `◐ ${theme}`;
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
}

const first = remembered("aipo-report-theme");
let theme = THEMES.includes(first) ? first : "auto";
setTheme(theme);
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
  remembered("aipo-report-theme", theme);
});
addEventListener("scroll", noTip, { passive: true });
drawSummary();
drawCurves();
drawResults();
drawValue();
drawViewer();

// before the first paint: the theme that the reader chose last, else the system's
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("report-theme"); } catch { /* storage may be off; the system decides */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
